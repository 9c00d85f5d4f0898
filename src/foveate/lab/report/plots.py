"""Plots as plain series that the page draws, and those of ``foveate eval``: accuracy over what was spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from foveate.lab.terminal import CommandError
from foveate.serialise import from_json, read_text

QUIET = ("random", "stride", "downsample")  # controls
COSTS = {"tokens": "visual tokens per decoder layer", "flops": "FLOPs of the whole call", "kv": "KV cache"}

BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError)  # what a wrong shape raises

Point = tuple[float, ...]


@dataclass(frozen=True)
class Axis:
    """What is along it. ``percent``: numbers are shares of one."""

    label: str
    log: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Series:
    """A line. A point is ``(x, y)`` or ``(x, y, low, high)``; ``level``: it is a level line through its only point."""

    label: str
    points: tuple[Point, ...]
    quiet: bool = False
    level: bool = False


@dataclass(frozen=True)
class Plot:
    """Lines over the same axes."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Plots of one file, to be looked at one at a time."""

    title: str
    plots: tuple[Plot, ...]
    note: str = field(default="")


def of_results(path: Path) -> Group:
    """Accuracy over each cost, from what ``foveate eval`` wrote, or from a stored result of it (``benchmarks/results``)."""
    data = read(path)
    data = data.get("found", data)
    try:
        rows, name = data["rows"], str(data["model"])
        plots = tuple(_over(cost, words, rows) for cost, words in COSTS.items())
        note = f"{int(data['questions'])} questions of the {data['split']} split, {len(data['tasks'])} tasks"
    except BROKEN as error:
        refuse(path, "a results.json of `foveate eval`", error)
    return Group(name, plots, note)


def _over(cost: str, words: str, rows: Sequence[Mapping[str, Any]]) -> Plot:
    lines: dict[str, list[Point]] = {}
    levels: list[Series] = []
    for row in rows:
        accuracy = row["accuracy"]
        point = (row["spent"][cost], accuracy["value"], accuracy["low"], accuracy["high"])
        if row["label"] in ("dense", "blind"):
            levels.append(Series(row["label"], (point_of(point),), quiet=row["label"] == "blind", level=True))
        else:
            lines.setdefault(row["label"], []).append(point_of(point))
    if min(share["n"] for share in rows[0]["tasks"].values()) > 1:  # of one question, that is the right answer
        guess = point_of((1.0, rows[0]["chance"][1]))
        levels.append(Series("most frequent answer", (guess,), quiet=True, level=True))
    series = [Series(label, tuple(sorted(points)), quiet=label in QUIET) for label, points in lines.items()]
    x, y = Axis(f"{words}, share of the stock model's", percent=True), Axis("accuracy, mean over tasks", percent=True)
    return Plot(words, x, y, (*series, *levels))


def plot_of(data: Mapping[str, Any]) -> Plot:
    """A plot in the shape that `foveate.lab.report.bench` describes."""
    series = tuple(
        Series(str(line["label"]), tuple(sorted(map(point_of, line["points"]))), bool(line.get("quiet", False)))
        for line in data["series"]
    )
    if not series:
        raise ValueError("a plot has no series")
    for line in series:
        if not line.points:
            raise ValueError(f"the series {line.label!r} has no point")
    x, y = _axis(data["x"]), _axis(data["y"])
    for axis, place in ((x, 0), (y, 1)):
        if axis.log and any(point[place] <= 0 for line in series for point in line.points):
            raise ValueError(f"{axis.label!r} is logarithmic, and has a point that is not above 0")
    return Plot(str(data["title"]), x, y, series, str(data.get("note", "")))


def _axis(data: Mapping[str, Any]) -> Axis:
    return Axis(str(data["label"]), bool(data.get("log", False)), bool(data.get("percent", False)))


def point_of(numbers: Sequence[Any]) -> Point:
    """Two or four finite numbers; `ValueError` for anything else."""
    point = tuple(float(number) for number in numbers)
    if len(point) not in (2, 4) or not all(map(math.isfinite, point)):
        raise ValueError(f"{list(numbers)} is not a point: give [x, y] or [x, y, low, high]")
    return point


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        data = from_json(read_text(path))
    except FileNotFoundError:
        raise CommandError(f"there is no file {str(path)!r}") from None
    except IsADirectoryError:
        raise CommandError(f"{str(path)!r} is a folder: give the JSON file in it") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read {str(path)!r} as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CommandError(f"{str(path)!r} holds a {type(data).__name__}, not the JSON object that a command writes")
    return data


def refuse(path: Path, expected: str, error: Exception) -> NoReturn:
    """Say in a sentence that a file is not what was ``expected``."""
    why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    raise CommandError(f"{str(path)!r} is not {expected}: {why}") from None
