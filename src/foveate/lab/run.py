"""``foveate run``: any supported model, your images, one method, and the same question to the stock model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.markup import escape

from foveate.cost import Report
from foveate.errors import FoveateError
from foveate.handle import compress, host_of
from foveate.lab import cautions, outputs, overlay, prompting
from foveate.lab.checks import check_dtype
from foveate.lab.devices import device_of, put
from foveate.lab.loading import load
from foveate.lab.story import tell as tell_story
from foveate.lab.terminal import CommandError
from foveate.method import Method
from foveate.methods import method_from_dict
from foveate.runtime.trace import Trace
from foveate.serialise import from_json, read_text
from foveate.trained import METHOD


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        model: a folder, an id on the Hugging Face hub, or the name of a reference model (``reference``).
        images, prompt: the question, images first.
        method: what to attach; or a folder or hub id of what `Handle.save_pretrained` or ``foveate train`` wrote.
        dtype: ``auto`` (as saved; the reference model: float32) or a name of `foveate.lab.checks.DTYPES`.
        device: ``auto``, ``cpu``, ``cuda`` ...
        attn: attention implementation, or None for the model's default.
        max_new_tokens: length of the answer at most.
        compare: ask the stock model, too.
        overlay: folder for pictures of the surviving patches, or None; ``overwrite``: replace those that are there.
    """

    model: str
    images: tuple[Path, ...]
    prompt: str
    method: Method | str
    dtype: str = "auto"
    device: str = "auto"
    attn: str | None = None
    max_new_tokens: int = 64
    compare: bool = True
    overlay: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Result:
    """What came out; ``seconds`` are those of ``generate`` as a whole, once."""

    request: Request
    method: Method
    family: str
    answer: str
    seconds: float
    report: Report
    dense_answer: str | None
    dense_seconds: float | None
    overlays: tuple[Path, ...]


def run(request: Request, tell: Callable[[str], None], warn: Callable[[str], None]) -> Result:
    """Load, ask, report. ``tell`` gets a line before each step that may take long, ``warn`` what to know of the answer."""
    prompting.check(request.prompt)
    known = _known(request.method)
    if known is not None:
        _pictures(request, known)
    check_dtype(request.dtype)
    images = [prompting.open_image(path) for path in request.images]
    device = device_of(request.device)
    tell(f"loading {request.model}")
    model, processor = load(request.model, request.dtype, request.attn)
    put(model, device, request.model)
    for line in cautions.about_model(request.model, model, processor, [request.prompt]):
        warn(line)
    inputs = prompting.inputs_of(processor, images, request.prompt, request.model).to(device, model.dtype)

    # The compressed run goes first: whatever the first call pays for warming up is not counted in its favour.
    with compress(model, request.method) as handle, ExitStack() as recording:
        trace = recording.enter_context(handle.trace()) if request.overlay is not None else None
        for line in cautions.about_methods(request.model, [handle.method], host_of(model), videos=False):
            warn(line)
        pictures = _pictures(request, handle.method)
        tell(f"asking with {handle.method!r}")
        answer, seconds = prompting.ask(model, processor, inputs, request.max_new_tokens)
        report = handle.report()
        recorded = trace() if trace is not None else None
    dense_answer, dense_seconds = None, None
    if request.compare:
        tell("asking the stock model")
        dense_answer, dense_seconds = prompting.ask(model, processor, inputs, request.max_new_tokens)

    overlays: list[Path] = []
    if recorded is not None:
        seen, tiles = prompting.seen(processor, inputs, images), prompting.tiles(processor, inputs, images)
        strips = _strips(request, recorded, report, seen, tiles)
        overlays = _draw([outputs.place_now(path, request.overwrite) for path, _ in zip(pictures, strips)], strips)
    return Result(
        request,
        handle.method,
        model.config.model_type,
        answer,
        seconds,
        report,
        dense_answer,
        dense_seconds,
        tuple(overlays),
    )


def to_dict(result: Result) -> dict[str, Any]:
    """Plain data."""
    dense = None
    if result.dense_answer is not None:
        dense = {"answer": result.dense_answer, "seconds": result.dense_seconds}
    return {
        "model": result.request.model,
        "family": result.family,
        "images": [str(path) for path in result.request.images],
        "prompt": result.request.prompt,
        "method": result.method.to_dict(),
        "answer": result.answer,
        "seconds": result.seconds,
        "dense": dense,
        "report": result.report.to_dict(),
        "overlays": [str(path) for path in result.overlays],
    }


def show(result: Result, console: Console) -> None:
    """Answers and report for a person."""
    console.print(f"[bold]{escape(result.request.prompt)}[/bold]")
    console.print(f"{escape(repr(result.method))}\n  {_said(result.answer)}", soft_wrap=True)
    if result.dense_answer is not None and result.dense_seconds is not None:
        same = "same answer" if result.dense_answer == result.answer else "another answer"
        if not result.dense_answer and not result.answer:
            same = "says nothing, too"
        console.print(f"stock model ({same})\n  {_said(result.dense_answer)}", soft_wrap=True)
    console.print()
    console.print(escape(str(result.report)), soft_wrap=True)
    if result.dense_seconds is not None:
        console.print(f"generate        {result.seconds:.2f} s, stock model {result.dense_seconds:.2f} s")
        console.print("                (one call each, the first one cold: not a measurement)")
    for path in result.overlays:
        console.print(f"overlay         {escape(str(path))}", soft_wrap=True)


def _said(answer: str) -> str:
    """An answer on the screen, where nothing is something, too."""
    return escape(answer) if answer else "[dim](nothing: the model ended its answer at once)[/dim]"


def _strips(
    request: Request, trace: Trace, report: Report, images: Sequence[Image.Image], tiles: Sequence[Image.Image]
) -> list[Image.Image]:
    """A picture for each image; a single one of all grids of tokens where the model has cut several images into tiles."""
    names = [path.name for path in request.images]
    if len(images) == 1 or tiles:
        return [overlay.strip(images[0], tell_story(trace, report), ", ".join(names), tiles)]
    return [
        overlay.strip(image, tell_story(trace, report, span), name)
        for span, (image, name) in enumerate(zip(images, names, strict=True))
    ]


def _known(method: Method | str) -> Method | None:
    """What will be attached, where that can be known before the model is there."""
    if isinstance(method, Method):
        return method
    try:
        return method_from_dict(from_json(read_text(Path(method) / METHOD))["method"])
    except (OSError, FoveateError, KeyError, TypeError):  # on the hub, or broken, which `compress` says
        return None


def _pictures(request: Request, method: Method) -> list[Path]:
    """The files of the pictures, which must not be there already."""
    if request.overlay is None:
        return []
    outputs.check_folder("overlay", request.overlay)
    paths = outputs.overlay_files(request.overlay, request.images, [part.name() for part in method.terms()])
    for path in paths:
        outputs.check_new("overlay", path, request.overwrite)
    return paths


def _draw(paths: Sequence[Path], strips: Sequence[Image.Image]) -> list[Path]:
    """Write the pictures; the files that there are now."""
    written = []
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, strip in zip(paths, strips):
            strip.save(path)
            written.append(path)
    except OSError as error:
        raise CommandError(f"cannot write overlays to {str(paths[0].parent)!r}: {error}") from None
    return written
