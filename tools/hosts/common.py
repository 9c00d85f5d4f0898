"""transformers' common model tests (`ModelTesterMixin`, `GenerationTesterMixin`) for a tiny model of every family; run by
`run.py`, with its plugin.

Of a type of which the language model alone is known, images come in a row of their own each, as its tests have them.
"""

from __future__ import annotations

import copy
import unittest
from typing import Any, ClassVar

import test_language_only as language
import tiny
import tiny_alike
import torch
import transformers
import unseen
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin
from torch import Tensor

ROWS: list[list[Any]] = [[3, "image", 5], [3, "image", 5]]
NAMES = tiny.FAMILIES
if hasattr(GenerationTesterMixin, "test_greedy_generate"):  # and no stand-in: of other types this alone is asked
    NAMES += (*tiny_alike.KNOWN, *language.NAMES)


def class_of(name: str) -> Any:
    """The class of its models."""
    return tiny.CLASSES.get(name) or getattr(transformers, tiny_alike.CLASSES[name])


def config_of(name: str) -> Any:
    """A new config of its tiny model."""
    if name in tiny.FAMILIES:
        return tiny.config(name)
    return tiny_alike.config(name) if name in tiny_alike.ALIKE else unseen.config_of(name)


def batch_of(name: str, count: int = 2) -> dict[str, Any]:
    """Two prompts of one length with an image each, or one."""
    if name in tiny.FAMILIES:
        return dict(tiny.inputs(name, ROWS[:count]))
    if name in tiny_alike.ALIKE:
        return dict(tiny_alike.inputs(name, ROWS[:count]))
    batch: dict[str, Any] = {key: x.clone() if isinstance(x, Tensor) else x for key, x in language.inputs(name).items()}
    batch["input_ids"][batch["attention_mask"] == 0] = 6  # a word for the padding
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    return batch if count == 2 else dict(unseen.row_of(name, batch, 0))


class Tester:
    """What these tests ask of a family: a config, and a batch."""

    is_training, batch_size = True, 2

    def __init__(self, name: str) -> None:
        self.name = name
        config, batch = self.prepare_config_and_inputs_for_common()
        text, vision = config.get_text_config(), getattr(config, "vision_config", None)
        self.seq_length = batch["input_ids"].shape[1]
        self.num_hidden_layers, self.hidden_size = text.num_hidden_layers, text.hidden_size
        self.num_attention_heads, self.vocab_size = text.num_attention_heads, text.vocab_size
        self.text_config, self.vision_config = text.to_dict(), vision.to_dict() if vision else {}

    def get_config(self) -> Any:
        return config_of(self.name)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        return self.get_config(), copy.deepcopy(batch_of(self.name))


class Common(ModelTesterMixin, GenerationTesterMixin):  # type: ignore[misc]  # transformers' tests are not typed
    """The tests of one family."""

    family: ClassVar[str]
    _is_composite = True

    def setUp(self) -> None:
        torch.manual_seed(0)
        self.model_tester = Tester(self.family)
        self.has_attentions = self.family not in tiny.RECURRENT
        self.test_all_params_have_gradient = (
            False  # experts that no token of a tiny batch goes to, layers of unused features
        )

    def prepare_config_and_inputs_for_generate(self, batch_size: int = 2) -> tuple[Any, dict[str, Any]]:
        """Stock code takes the first rows of every argument, which pixels have several of for an image."""
        config = config_of(self.family)
        config.get_text_config(decoder=True).eos_token_id = None
        return config, copy.deepcopy(batch_of(self.family, batch_size))


for name in NAMES:
    members = {"family": name, "all_model_classes": (class_of(name),)}
    globals()[name] = type(name, (Common, unittest.TestCase), members)
