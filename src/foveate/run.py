"""``foveate run``: any supported model, your images, one method, and the same question to the stock model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape

from foveate import overlay
from foveate.compress import compress
from foveate.cost import Report
from foveate.errors import first_line
from foveate.loading import check_dtype, device_of, load, open_image
from foveate.method import Method
from foveate.terminal import CommandError


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        model: a folder, an id on the Hugging Face hub, ``reference`` or ``reference-llava``.
        images, prompt: the question, images first.
        method: what to attach.
        dtype: ``auto`` (as saved; the reference model: float32) or a name of `foveate.loading.DTYPES`.
        device: ``auto``, ``cpu``, ``cuda`` ...
        attn: attention implementation, or None for the model's default.
        max_new_tokens: length of the answer at most.
        compare: ask the stock model, too.
        overlay: folder for pictures of the surviving patches, or None.
    """

    model: str
    images: tuple[Path, ...]
    prompt: str
    method: Method
    dtype: str = "auto"
    device: str = "auto"
    attn: str | None = None
    max_new_tokens: int = 64
    compare: bool = True
    overlay: Path | None = None


@dataclass(frozen=True)
class Result:
    """What came out; ``seconds`` are those of ``generate`` as a whole, once."""

    request: Request
    family: str
    answer: str
    seconds: float
    report: Report
    dense_answer: str | None
    dense_seconds: float | None
    overlays: tuple[Path, ...]


def run(request: Request, tell: Callable[[str], None]) -> Result:
    """Load, ask, report. ``tell`` gets a line before each step that may take long."""
    if not request.prompt.strip():
        raise CommandError("the prompt is empty: ask something, e.g. --prompt 'What is in the image?'")
    check_dtype(request.dtype)
    images = [open_image(path) for path in request.images]
    device = device_of(request.device)
    tell(f"loading {request.model}")
    model, processor = load(request.model, request.dtype, request.attn)
    model.to(device)
    inputs = _inputs(processor, images, request.prompt, request.model).to(device, model.dtype)

    tell(f"asking with {request.method!r}")
    # The compressed run goes first: whatever the first call pays for warming up is not counted in its favour.
    with compress(model, request.method) as handle:
        answer, seconds = _ask(model, processor, inputs, request.max_new_tokens)
        report = handle.report()
    dense_answer, dense_seconds = None, None
    if request.compare:
        tell("asking the stock model")
        dense_answer, dense_seconds = _ask(model, processor, inputs, request.max_new_tokens)

    overlays: list[Path] = []
    if request.overlay is not None:
        overlays = _draw(request.overlay, _seen(processor, inputs, images), request, report)
    return Result(
        request, model.config.model_type, answer, seconds, report, dense_answer, dense_seconds, tuple(overlays)
    )


def to_json(result: Result) -> dict[str, Any]:
    """Plain data."""
    dense = None
    if result.dense_answer is not None:
        dense = {"answer": result.dense_answer, "seconds": result.dense_seconds}
    return {
        "model": result.request.model,
        "family": result.family,
        "images": [str(path) for path in result.request.images],
        "prompt": result.request.prompt,
        "method": result.request.method.to_json(),
        "answer": result.answer,
        "seconds": result.seconds,
        "dense": dense,
        "report": result.report.to_json(),
        "overlays": [str(path) for path in result.overlays],
    }


def show(result: Result, console: Console) -> None:
    """Answers and report for a person."""
    console.print(f"[bold]{escape(result.request.prompt)}[/bold]")
    console.print(f"{escape(repr(result.request.method))}\n  {escape(result.answer)}", soft_wrap=True)
    if result.dense_answer is not None and result.dense_seconds is not None:
        same = "same answer" if result.dense_answer == result.answer else "another answer"
        console.print(f"stock model ({same})\n  {escape(result.dense_answer)}", soft_wrap=True)
    console.print()
    console.print(escape(str(result.report)), soft_wrap=True)
    if result.dense_seconds is not None:
        console.print(f"generate        {result.seconds:.2f} s, stock model {result.dense_seconds:.2f} s")
        console.print("                (one call each, the first one cold: not a measurement)")
    for path in result.overlays:
        console.print(f"overlay         {escape(str(path))}", soft_wrap=True)


def _inputs(processor: Any, images: Sequence[Image.Image], prompt: str, name: str) -> Any:
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


def _ask(model: Any, processor: Any, inputs: Any, max_new_tokens: int) -> tuple[str, float]:
    start = time.perf_counter()
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :].cpu()  # waits for the device
    seconds = time.perf_counter() - start
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip(), seconds


def _seen(processor: Any, inputs: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images as the model saw them: some processors crop. Packed patches are the whole image, resized."""
    pixels = inputs["pixel_values"]
    if pixels.dim() != 4:
        return list(images)
    mean, std = (torch.tensor(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
    restored = pixels.float().cpu() * std[:, None, None] + mean[:, None, None]
    bytes_ = (restored.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(image.numpy()) for image in bytes_]


def _draw(folder: Path, images: Sequence[Image.Image], request: Request, report: Report) -> list[Path]:
    name = "+".join(part.name() for part in request.method.parts())
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (image, source) in enumerate(zip(images, request.images, strict=True)):
            path = folder / f"{number + 1:02d}-{source.stem}-{name}.png"
            overlay.strip(image, report.visits, number, source.name).save(path)
            written.append(path)
    except OSError as error:
        raise CommandError(f"cannot write overlays to {str(folder)!r}: {error}") from None
    return written
