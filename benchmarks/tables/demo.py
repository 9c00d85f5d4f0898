"""The table that ``foveate demo`` ends with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

import foveate_reference as reference
from foveate import method_from_dict
from foveate.lab import demo

FIRST = "tokens"  # the line that the table begins with, but for spaces
LAST = "see the benchmarks."  # what is said below it ends with this


def table(found: dict[str, Any]) -> str:
    """As it is printed where a line has 80 columns."""
    page = io.StringIO()
    demo.show(_read(found), Path(found["overlays"][0]).with_name("report.html"), Console(file=page, width=80))
    lines = [line.rstrip() for line in page.getvalue().splitlines()]
    begin = max(number for number, line in enumerate(lines) if line.strip() == FIRST)
    end = next(number for number, line in enumerate(lines) if line.endswith(LAST))
    return "\n".join(["```", *lines[begin : end + 1], "```"])


def _read(found: dict[str, Any]) -> demo.Demo:
    """What `foveate.lab.demo.to_dict` made plain, as it was."""
    rows = [demo.Row(asked["image"] - 1, _question(asked), asked["answers"]) for asked in found["questions"]]
    scores = {}
    for method in found["methods"]:
        ratios = (method[key] for key in ("mean_tokens", "flops_ratio", "kv_ratio", "time_ratio"))
        sites, tokens = tuple(method["sites"]), tuple(method["tokens"])
        scores[method["name"]] = demo.Score(
            method_from_dict(method["options"]), method["right"], sites, tokens, *ratios
        )
    overlays = tuple(map(Path, found["overlays"]))
    return demo.Demo((), tuple(rows), found["dense"]["right"], scores, found["visual_tokens"], found["keep"], overlays)


def _question(asked: dict[str, Any]) -> reference.Question:
    """Without what it is about, which no table says."""
    return reference.Question(asked["task"], asked["question"], asked["truth"], (), ())
