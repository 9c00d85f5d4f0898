"""The model under test: loaded, and checked against what the benchmark asks of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError

import foveate_reference as reference
from foveate.handle import host_of
from foveate.lab.checks import REFERENCES
from foveate.lab.evaluation.batches import Preparation
from foveate.lab.terminal import CommandError
from foveate.method import Host, Method
from foveate.models import family_of
from foveate.serialise import from_json
from foveate.trained import adapted
from foveate_reference.data import Sample
from foveate_reference.vocabulary import CELL, SIZE, WORDS

_BROKEN = (
    *(OSError, ValueError, ImportError, RuntimeError, KeyError, AttributeError, TypeError, ArithmeticError),
    SafetensorError,
)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that can be asked.

    Attributes:
        name: of the reference model, or the folder.
        digest: SHA-256 of its configuration and weights.
        model: in evaluation mode.
        preparation: makes its inputs.
        trained: the method that its adapter was trained with.
    """

    name: str
    digest: str
    model: Any
    preparation: Preparation
    trained: Method | None = None

    @cached_property
    def host(self) -> Host:
        """What a method may know about it."""
        return host_of(self.model)


def load(name: str, trained: str | None = None) -> Subject:
    """The reference model of that name, or the one in that folder, with the adapter ``trained`` on it.

    Raises:
        CommandError: it cannot be loaded, or does not speak the benchmark's vocabulary, or does not make one visual token
            of each square of 16 px, which is what the evidence refers to.
    """
    shown = REFERENCES.get(name, name)
    place = reference.PATHS.get(shown, Path(name))
    if not place.is_dir():
        raise CommandError(
            f"there is no model folder {str(place)!r}: give one, or {' or '.join(REFERENCES)}; other models have no answers "
            "to these questions, so compare them by `foveate eval fidelity` or `foveate eval tasks`"
        )
    try:
        config = from_json((place / "config.json").read_text(encoding="utf-8"))
        family_of(transformers.AutoConfig.from_pretrained(place))  # says what is supported before anything is loaded
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True
        )
        processor = reference.load_processor(place)
    except _BROKEN as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CommandError(f"cannot load the model {shown!r}: {first}") from None
    side = int(config["vision_config"].get("image_size", 0))
    subject = Subject(shown, _digest(place), model.eval(), Preparation(processor, side, model.device, model.dtype))
    _check(subject)
    if trained is None:
        return subject
    method = adapted(subject.model, trained, subject.host)
    digest = hashlib.sha256(subject.digest.encode())
    for weights in subject.model.state_dict().values():
        digest.update(weights.numpy().tobytes())
    return replace(subject, name=f"{shown} + {trained}", digest=digest.hexdigest(), trained=method)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _check(subject: Subject) -> None:
    processor, name = subject.preparation.processor, subject.name
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not getattr(processor, "chat_template", None):
        raise CommandError(f"the processor of {name!r} has no tokenizer or no chat template, so it cannot be asked")
    ids = tokenizer(list(WORDS), add_special_tokens=False)["input_ids"]
    strange = [word for word, tokens in zip(WORDS, ids) if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id]
    if strange:
        raise CommandError(
            f"the tokenizer of {name!r} has no token of its own for {len(strange)} of the benchmark's {len(WORDS)} words "
            f"({', '.join(strange[:3])} ...): use a model trained on the benchmark (`foveate train reference`)"
        )
    cells = (SIZE // CELL) ** 2
    for count, size in ((1, SIZE), (2, SIZE), (1, 2 * SIZE)):
        images = (np.zeros((size, size, 3), np.uint8),) * count
        evidence = (np.zeros((size // CELL, size // CELL), np.float32),) * count
        probe = Sample(id="", task="", images=images, question=WORDS[0], answer="", choices=(), evidence=evidence)
        wanted = cells * count * (size // SIZE) ** 2
        try:
            found = _visual_tokens(subject, subject.preparation.batch([probe]).inputs)
        except _BROKEN as error:
            raise CommandError(f"the processor of {name!r} cannot prepare images and a question: {error}") from None
        if found != wanted:
            raise CommandError(
                f"the processor of {name!r} makes {found} visual tokens of {count} image(s) of {size} x {size} px; the "
                f"benchmark needs {wanted}, one for each square of {CELL} px"
            )


def _visual_tokens(subject: Subject, inputs: Any) -> int:
    config = subject.model.config
    token = getattr(config, family_of(config).modalities["pixel_values"])
    return int((inputs["input_ids"] == token).sum())
