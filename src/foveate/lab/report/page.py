"""The page: a template, style sheet and script of the package, and the data as JSON, in one file that asks nobody for anything.

All text is data: the script puts it on the page as text, never as markup, and the page's own policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.markup import escape

from foveate import __version__
from foveate.lab import standalone
from foveate.lab.report.plots import Group
from foveate.lab.story import Case, Content, Story, Told
from foveate.lab.story.view import Frame

SIDE = 640  # longest side of an embedded picture in pixels: a card's width on a sharp screen
LOSSLESS = 80_000  # bytes up to which a picture is a PNG
SCRIPTS = ("page.js", "picture.js", "bars.js", "plots.js", "columns.js", "address.js", "viewer.js")


def write(path: Path, content: Content, curves: Sequence[Group] = (), bench: Sequence[Group] = ()) -> Path:
    """The page as a file; whoever looks at the file meanwhile sees the old one."""
    return standalone.write(path, render(content, curves, bench))


def render(content: Content, curves: Sequence[Group] = (), bench: Sequence[Group] = ()) -> str:
    """The page as text."""
    title, data = html.escape(f"foveate: {content.model}"), _inert(to_dict(content, curves, bench))
    return standalone.render("foveate.lab.report", "page", SCRIPTS, title=title, data=data)


def to_dict(content: Content, curves: Sequence[Group], bench: Sequence[Group]) -> dict[str, Any]:
    """What the script is given."""
    pictures = _Pictures()
    return {
        "model": content.model,
        "family": content.family,
        "versions": {"foveate": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "methods": [{"label": label, "options": options} for label, options in content.methods.items()],
        "steps": [asdict(step) for step in next(iter(content.cases[0].told.values())).story.steps],
        "cases": [_case(case, list(content.methods), pictures) for case in content.cases],
        "pictures": pictures.found,
        "curves": [asdict(group) for group in curves],
        "bench": [asdict(group) for group in bench],
    }


def summary(content: Content, written: Path) -> dict[str, Any]:
    """Answers and costs as plain data, and where the page is."""
    return {
        "page": str(written),
        "model": content.model,
        "methods": dict(content.methods),
        "questions": [
            {
                "image": case.name,
                "question": case.prompt,
                "truth": case.truth,
                "answers": {"dense": case.dense, **{name: told.answer for name, told in case.told.items()}},
                "spent": {name: _spent(told) for name, told in case.told.items()},
            }
            for case in content.cases
        ],
    }


def show(content: Content, written: Path, console: Console) -> None:
    """Where the page is, and how many answers differ, for a person."""
    for name in content.methods:
        same = sum(case.told[name].answer == case.dense for case in content.cases)
        console.print(f"{escape(name)}: {same} of {len(content.cases)} answers as the stock model's", soft_wrap=True)
    console.print(f"\nopen [bold]{escape(str(written))}[/bold] in a browser", soft_wrap=True)


class _Pictures:
    """Images as data URIs, each of them once."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._known: dict[bytes, int] = {}

    def add(self, image: Image.Image) -> int:
        """Its number."""
        image = image.convert("RGB")
        if max(image.size) > SIDE:
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        if key not in self._known:
            self._known[key] = len(self.found)
            self.found.append({"src": _uri(image), "width": image.width, "height": image.height})
        return self._known[key]


def _uri(image: Image.Image) -> str:
    kind, buffer = "png", io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    if buffer.tell() > LOSSLESS:
        kind, buffer = "jpeg", io.BytesIO()
        image.save(buffer, "JPEG", quality=88, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _case(case: Case, methods: Sequence[str], pictures: _Pictures) -> dict[str, Any]:
    image, tiles = pictures.add(case.image), [pictures.add(tile) for tile in case.parts]
    return {
        "name": case.name,
        "image": image,
        "prompt": case.prompt,
        "truth": case.truth,
        "dense": case.dense,
        "told": [_told(case.told[label], image, tiles) for label in methods],
    }


def _spent(told: Told) -> dict[str, float]:
    return {"tokens": told.tokens, "flops": told.flops, "kv": told.kv}


def _told(told: Told, image: int, tiles: Sequence[int]) -> dict[str, Any]:
    story = told.story
    return {
        "answer": told.answer,
        "spent": {name: round(share, 6) for name, share in _spent(told).items()},
        "frames": [_frame(frame) for frame in story.frames],
        "shown": [_panels(story, number, image, tiles) for number in range(len(story.steps))],
        "tokens": story.tokens,
        "full": story.full_tokens,
        "acts": [[asdict(act) for act in acts] for acts in story.acts],
        "flops": story.flops,
        "kv": story.kv,
        "rows": story.rows,
    }


def _panels(story: Story, number: int, image: int, tiles: Sequence[int]) -> list[tuple[int, int | None]]:
    """For each grid of a step its frame, and the picture that it lies over; None: nobody knows where it lies."""
    shown = story.shown[number]
    over: list[int | None] = [None] * len(shown)
    if len(shown) == 1:
        over = [image]
    elif len(shown) == len(tiles):
        over = list(tiles)
    return list(zip(shown, over))


def _frame(frame: Frame) -> dict[str, Any]:
    """Without what is not there."""
    return {name: value for name, value in asdict(frame).items() if value is not None}


def _inert(data: Any) -> str:
    """JSON in which nothing can end the element that it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: line separators are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
