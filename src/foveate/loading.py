"""A model and its processor by name (a folder, a hub id, or a reference model), and images. Shared by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError

# `transformers.AutoImageProcessor` is a placeholder in 5.16 where torchvision is missing; the class itself does without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from foveate import reference
from foveate.errors import first_line
from foveate.models import family_of
from foveate.terminal import CommandError

REFERENCES = {"reference": "qwen2_5_vl", **{f"reference-{name}": name for name in reference.ARCHITECTURES}}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_BROKEN = (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError)


def device_of(name: str) -> torch.device:
    """``auto``, or what torch understands."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"--device {name!r} cannot be used here: {first_line(error)}") from None
    return device


def check_dtype(name: str) -> None:
    """Raise `CommandError` unless it is ``auto`` or a name of `DTYPES`."""
    if name not in ("auto", *DTYPES):
        raise CommandError(f"--dtype {name!r}: choose auto, {', '.join(DTYPES)}")


def load(name: str, dtype: str = "auto", attn: str | None = None) -> tuple[Any, Any]:
    """Model in evaluation mode, and processor.

    Args:
        name: a folder, an id on the Hugging Face hub, or one of `REFERENCES`.
        dtype: ``auto`` (as saved; the reference models: float32) or a name of `DTYPES`.
        attn: attention implementation, or None for the model's default.
    """
    check_dtype(dtype)
    model: Any
    if name in REFERENCES:
        model, processor = reference.load(REFERENCES[name], DTYPES.get(dtype, torch.float32))
        if attn is not None:
            try:
                model.set_attn_implementation(attn)
            except _BROKEN as error:
                raise CommandError(f"--attn {attn!r} cannot be used here: {first_line(error)}") from None
        return model, processor
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CommandError(f"the folder {name!r} has no config.json: give the folder of a saved Hugging Face model")
    if not folder.is_dir() and (folder.is_absolute() or folder.exists() or name.startswith((".", "~"))):
        raise CommandError(f"there is no model folder {name!r}")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
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


def open_image(path: Path) -> Image.Image:
    """An image file in RGB, turned as its EXIF data say.

    Raises:
        CommandError: there is no such file, or Pillow cannot read it.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise CommandError(f"there is no image {str(path)!r}") from None
    except IsADirectoryError:
        raise CommandError(f"{str(path)!r} is a folder, not an image file: name each image") from None
    except UnidentifiedImageError:
        raise CommandError(f"{str(path)!r} is not an image that Pillow can read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise CommandError(f"cannot read the image {str(path)!r}: {error}") from None


def _processor(name: str, config: Any) -> Any:
    """The model's processor; without torchvision, one for images only if the video half cannot be made."""
    try:
        return transformers.AutoProcessor.from_pretrained(name)
    except (ImportError, OSError):  # OSError: the folder has no video half
        images = AutoImageProcessor.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        kind: Any = transformers.PROCESSOR_MAPPING[type(config)]
        return type(kind.__name__, (_ImagesOnly, kind), {})(images, tokenizer, chat_template=tokenizer.chat_template)


class _ImagesOnly:
    """Transformers reads a processor's parts off this signature."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[call-arg]
