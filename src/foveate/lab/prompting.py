"""An image file and a prompt on their way into a model, and the answer on its way out. Shared by the commands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.errors import first_line
from foveate.lab.terminal import CommandError


def check(prompt: str) -> None:
    """Raise `CommandError` if there is nothing in it."""
    if not prompt.strip():
        raise CommandError("the prompt is empty: ask something, e.g. --prompt 'What is in the image?'")


def open_image(path: Path) -> Image.Image:
    """The image of a file in RGB, upright; `CommandError` if there is none."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        if str(path).startswith(("http:", "https:")):
            raise CommandError(f"{str(path)!r} is an address: save the image, and give its file") from None
        raise CommandError(f"there is no image {str(path)!r}") from None
    except IsADirectoryError:
        raise CommandError(f"{str(path)!r} is a folder, not an image file: name each image") from None
    except UnidentifiedImageError:
        raise CommandError(f"{str(path)!r} is not an image that Pillow can read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise CommandError(f"cannot read the image {str(path)!r}: {error}") from None


def inputs_of(processor: Any, images: Sequence[Image.Image], prompt: str, name: str) -> Any:
    """What the model ``name`` is called with when it is asked ``prompt`` about the images."""
    if not getattr(processor, "chat_template", None):
        raise CommandError(f"the processor of {name!r} has no chat template, so a prompt cannot be put in its format")
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]
    try:
        return processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    except ValueError as error:  # an image of a shape that this model does not take
        raise CommandError(f"the processor of {name!r} refuses the input: {first_line(error)}") from None


def ask(model: Any, processor: Any, inputs: Any, max_new_tokens: int) -> tuple[str, float]:
    """The answer, and the seconds that it took."""
    start = time.perf_counter()
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :].cpu()  # waits for the device
    seconds = time.perf_counter() - start
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip(), seconds


def seen(processor: Any, inputs: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images as the model saw them: some processors crop. Packed patches and tiles are the whole image, resized."""
    found = _pictures(processor, inputs)
    return found if len(found) == len(images) else list(images)


def tiles(processor: Any, inputs: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The parts that the processor has cut the images into; none if it has not."""
    found = _pictures(processor, inputs)
    return [] if len(found) == len(images) else found


def _pictures(processor: Any, inputs: Any) -> list[Image.Image]:
    """Every picture that the tower is shown, where it is shown pictures, not packed patches."""
    import torch

    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, torch.Tensor) or pixels.dim() not in (4, 5) or pixels.shape[-3] != 3:
        return []
    pixels = pixels.flatten(0, -4).float().cpu()
    if getattr(processor.image_processor, "do_normalize", True):
        mean, std = (torch.tensor(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
        pixels = pixels * std[:, None, None] + mean[:, None, None]
    bytes_ = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(image.numpy()) for image in bytes_]
