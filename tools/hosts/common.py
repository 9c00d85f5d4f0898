"""transformers' common model tests (`ModelTesterMixin`) for a tiny model of every family; run by `run.py`, with its plugin."""

from __future__ import annotations

import unittest
from typing import Any, ClassVar

import tiny
import torch
from tests.test_modeling_common import ModelTesterMixin


class Tester:
    """What these tests ask of a family: a config, and a batch of two prompts of one length with an image each."""

    is_training, batch_size = True, 2

    def __init__(self, family: str) -> None:
        self.family = family
        config, batch = self.prepare_config_and_inputs_for_common()
        text, vision = config.get_text_config(), config.vision_config
        self.seq_length = batch["input_ids"].shape[1]
        self.num_hidden_layers, self.hidden_size = text.num_hidden_layers, text.hidden_size
        self.num_attention_heads, self.vocab_size = text.num_attention_heads, text.vocab_size
        self.text_config, self.vision_config = text.to_dict(), vision.to_dict()

    def get_config(self) -> Any:
        return tiny.config(self.family)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        rows: list[list[Any]] = [[3, "image", 5], [3, "image", 5]]
        return self.get_config(), dict(tiny.inputs(self.family, rows))


class Common(ModelTesterMixin):  # type: ignore[misc]  # transformers' tests are not typed
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


for name in tiny.FAMILIES:
    members = {"family": name, "all_model_classes": (tiny.CLASSES[name],)}
    globals()[name] = type(name, (Common, unittest.TestCase), members)
