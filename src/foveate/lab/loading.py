"""A model and its processor by name: a folder, a hub id, or a reference model. Shared by the commands."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

# `transformers.AutoImageProcessor` is a placeholder in 5.16 where torchvision is missing; the class itself does without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from foveate.errors import first_line
from foveate.lab import checks, needs
from foveate.lab.checks import REFERENCES, check_dtype, check_model
from foveate.lab.terminal import CommandError
from foveate.models import family_of, read_config

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in checks.DTYPES}

#: What a processor consists of; the rest of its configuration are numbers and names.
PARTS = ("image_processor", "tokenizer", "video_processor", "feature_extractor")

_BROKEN = (OSError, ValueError, ImportError, RuntimeError, KeyError, ArithmeticError, SafetensorError)


def load(name: str, dtype: str = "auto", attn: str | None = None) -> tuple[Any, Any]:
    """Model in evaluation mode, and processor.

    Args:
        name: a folder, an id on the Hugging Face hub, one of `REFERENCES`, or the folder of a run that trained one of them.
        dtype: ``auto`` (as saved; the reference models: float32) or a name of `DTYPES`.
        attn: attention implementation, or None for the model's default.
    """
    check_dtype(dtype)
    model: Any
    if name in REFERENCES or checks.is_run(name):
        reference = needs.reference()
        try:
            model, processor = reference.load(REFERENCES.get(name, name), DTYPES.get(dtype, torch.float32))
        except _BROKEN as error:
            raise CommandError(f"cannot load the model {name!r}: {first_line(error)}") from None
        if attn is not None:
            try:
                model.set_attn_implementation(attn)
            except _BROKEN as error:
                raise CommandError(f"--attn {attn!r} cannot be used here: {first_line(error)}") from None
        return model, processor
    check_model(name)
    folder = Path(name)
    try:
        config = read_config(name)
        family_of(config)  # says what is supported before gigabytes are loaded
        # Weights are safetensors: nothing is unpickled.
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, attn_implementation=attn, use_safetensors=True
        )
        processor = _processor(name, config)
    except _BROKEN as error:
        where = "" if folder.is_dir() else " (no such folder, so it was looked for on the Hugging Face hub)"
        raise CommandError(f"cannot load the model {name!r}{where}: {first_line(error)}") from None
    return model.eval(), processor


def load_processor(name: str) -> Any:
    """The processor alone, of a model that another engine loads; arguments as of `load`."""
    if name in REFERENCES:
        return needs.reference().load_processor(needs.reference().PATHS[REFERENCES[name]])
    check_model(name)
    try:
        return _processor(name, read_config(name))
    except _BROKEN as error:
        raise CommandError(f"cannot load the processor of {name!r}: {first_line(error)}") from None


def _processor(name: str, config: Any) -> Any:
    """The model's processor; without torchvision, one for images only if the video half cannot be made."""
    try:
        return transformers.AutoProcessor.from_pretrained(name)
    except (ImportError, OSError, ValueError):  # depends on which file misses the video half
        images = AutoImageProcessor.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        kind: Any = transformers.PROCESSOR_MAPPING[type(config)]
        saved, _ = kind.get_processor_dict(name)
        own = {key: saved[key] for key in inspect.signature(kind).parameters if key in saved and key not in PARTS}
        images_only = type(kind.__name__, (_ImagesOnly, kind), {})
        return images_only(images, tokenizer, **{"chat_template": tokenizer.chat_template} | own)


class _ImagesOnly:
    """Transformers reads a processor's parts off this signature."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **own: Any) -> None:
        super().__init__(image_processor, tokenizer, **own)  # type: ignore[call-arg]
