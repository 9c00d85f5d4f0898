"""Accuracy over cost as a picture. matplotlib is an extra, so it is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveate.lab import needs

#: Controls and bounds are grey or black, so that methods stand out.
CONTROLS: dict[str, tuple[str, str]] = {
    "oracle": ("black", "-"),
    "random": ("0.45", ":"),
    "stride": ("0.45", "--"),
    "downsample": ("0.45", "-."),
}


def can_draw() -> bool:
    """Whether there is what draws the picture; the tables are whole without it."""
    return needs.is_there("matplotlib")


def draw(rows: Sequence[Any], path: Path, title: str, guess: float | None = None) -> None:
    """Two panels: over visual tokens per decoder layer, and over FLOPs of the whole call.

    Args:
        rows: what was measured, each with ``label``, ``budget``, ``accuracy`` and ``spent``.
        path: of the picture.
        title: above it.
        guess: accuracy of the most frequent answer.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    over_tokens, over_flops = figure.subplots(1, 2, sharey=True)
    panels: tuple[tuple[Any, str, Callable[[Any], float]], ...] = (
        (over_tokens, "visual tokens per decoder layer", lambda row: row.spent.tokens),
        (over_flops, "FLOPs of the whole call", lambda row: row.spent.flops),
    )
    for axes, name, cost in panels:
        _panel(axes, rows, cost, guess)
        axes.set_xlabel(f"{name}, share of the stock model's")
        axes.grid(alpha=0.25)
    over_tokens.set_ylabel("accuracy, mean over tasks")
    handles, labels = over_tokens.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=120)


def _panel(axes: Any, rows: Sequence[Any], cost: Callable[[Any], float], guess: float | None) -> None:
    for row in rows:
        if row.label in ("dense", "blind"):
            style = "-" if row.label == "dense" else "--"
            axes.axhline(row.accuracy.value, color="tab:red", linestyle=style, linewidth=1, label=row.label)
            axes.axhspan(row.accuracy.low, row.accuracy.high, color="tab:red", alpha=0.08, linewidth=0)
        elif row.budget is None:
            axes.plot(cost(row), row.accuracy.value, "kx", label=row.label)
    if guess is not None:
        axes.axhline(guess, color="tab:red", linestyle=":", linewidth=1, label="most frequent answer")
    curves: dict[str, list[Any]] = {}
    for row in rows:
        if row.budget is not None:
            curves.setdefault(row.label, []).append(row)
    for label, points in curves.items():
        points.sort(key=cost)
        color, style = CONTROLS.get(label, (None, "-"))
        x, y = [cost(row) for row in points], [row.accuracy.value for row in points]
        axes.plot(x, y, color=color, linestyle=style, marker="o", markersize=3, linewidth=1.2, label=label)
