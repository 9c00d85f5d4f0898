"""Plots of measurements: of ``foveate bench``'s JSON, and of any file that has them as series.

Such a file has the field ``plots``:

    {"plots": [{"title": "prefill", "note": "two x86-64 cores",
                "x": {"label": "visual tokens", "log": true}, "y": {"label": "seconds", "log": true},
                "series": [{"label": "dense", "points": [[256, 0.11], [1024, 0.52, 0.50, 0.55]]}]}]}

A point is ``[x, y]`` or ``[x, y, low, high]``. ``note``, ``log`` and, of a series, ``quiet`` (a control, drawn in grey) may be
left out, and ``percent`` says of an axis that its numbers are shares.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.lab.report.plots import BROKEN, QUIET, Axis, Group, Plot, Point, Series, plot_of, point_of, read, refuse
from foveate.lab.terminal import CommandError

DENSE = "dense"
STAGES = {
    "first": "first token",
    "tower": "vision tower",
    "prefill": "prefill",
    "decode": "decoding",
    "total": "whole call",
}


def of_bench(path: Path) -> list[Group]:
    """A group for each model and batch of a bench, or one of all plots of another file."""
    data = read(path)
    try:
        if data.get("schema") == 1 and not any(_rounds(case) for case in data.get("cases") or ()):
            raise CommandError(f"{str(path)!r} has no finished round yet: the same `foveate bench` command goes on")
        groups = _measured(data) if data.get("schema") == 1 and "cases" in data else [_given(path.stem, data)]
        groups = [group for group in groups if group.plots]
        if not groups:
            raise ValueError("it has nothing to draw")
    except BROKEN as error:
        refuse(path, 'a JSON of `foveate bench`, nor of anything else with the field "plots"', error)
    return groups


def _rounds(case: Mapping[str, Any]) -> bool:
    """Whether the stock model and a method were timed in a round."""
    return sum(bool(line["repeats"]) for line in case["lines"].values()) > 1


def _given(name: str, data: Mapping[str, Any]) -> Group:
    return Group(name, tuple(map(plot_of, data["plots"])), str(data.get("note", "")))


def _measured(data: Mapping[str, Any]) -> list[Group]:
    """Speed-ups over the stock model in the same round: medians and quartiles, over visual tokens."""
    cases: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for case in data["cases"]:
        cases.setdefault((str(case["model"]), int(case["batch"])), []).append(case)
    settings = data["settings"]
    threads = settings["threads"]
    note = f"{settings['device']}, {threads} thread{'s' * (threads != 1)}. Medians and quartiles of ratios in the same round."
    groups = []
    for (model, batch), several in cases.items():
        plots = [_speed(words, stage, several) for stage, words in STAGES.items()]
        groups.append(Group(f"{model}, batch {batch}", tuple(plot for plot in plots if plot.series[1:]), note))
    return groups


def _speed(words: str, stage: str, cases: Sequence[Mapping[str, Any]]) -> Plot:
    lines: dict[str, list[Point]] = {}
    for case in cases:
        stock = case["lines"][DENSE]["repeats"]
        for label, line in case["lines"].items():
            pairs = [(a[stage], b[stage]) for a, b in zip(stock, line["repeats"]) if stage in a and stage in b]
            if label != DENSE and pairs:
                spread = _spread([theirs / ours for theirs, ours in pairs])
                lines.setdefault(label, []).append(point_of((case["tokens"], *spread)))
    series = [
        Series(label, tuple(sorted(points)), quiet=label.partition("(")[0] in QUIET) for label, points in lines.items()
    ]
    level = Series("stock model", ((1.0, 1.0),), level=True)
    return Plot(words, Axis("visual tokens", log=True), Axis(f"times as fast, {words}"), (level, *series))


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high
