"""Accuracy over cost as a picture. matplotlib is an extra, so it is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveate.lab import drawing, needs


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
    import matplotlib
    from matplotlib.figure import Figure

    panels: tuple[tuple[str, Callable[[Any], float]], ...] = (
        ("visual tokens per decoder layer", lambda row: row.spent.tokens),
        ("FLOPs of the whole call", lambda row: row.spent.flops),
    )
    styles = drawing.styles(row.label for row in rows if row.budget is not None)
    keys = -(-(len(styles) + 3) // 3)  # lines of the legend
    with matplotlib.rc_context(drawing.STYLE):
        figure = Figure(figsize=(drawing.WIDTH, 3.6 + 0.19 * keys), layout="constrained")
        places = figure.subplots(1, 2, sharey=True)
        for axes, (name, cost) in zip(places, panels):
            _panel(axes, rows, cost, guess, styles)
            axes.set_xlabel(f"{name},\nof the stock model's")
        places[0].set_ylabel("accuracy, mean over tasks")
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=3)
        figure.suptitle(f"{title}. Bars: 95 % intervals.", x=0.01, ha="left")
        figure.savefig(path, dpi=drawing.DPI)


def _panel(
    axes: Any, rows: Sequence[Any], cost: Callable[[Any], float], guess: float | None, styles: dict[str, dict[str, Any]]
) -> None:
    """Both axes begin at nothing and end at the stock model, so that a few points look like a few points."""
    curves: dict[str, list[Any]] = {}
    for row in rows:
        if row.label in ("dense", "blind"):
            style = "-" if row.label == "dense" else "--"
            color = drawing.INK if row.label == "dense" else drawing.SOFT
            axes.axhline(row.accuracy.value, color=color, linestyle=style, linewidth=1, label=row.label)
            axes.axhspan(*_ends(row.accuracy), color=color, alpha=0.1, linewidth=0)
        elif row.budget is None:
            _points(axes, [row], cost, color=drawing.INK, marker="x", linestyle="none", label=row.label)
        else:
            curves.setdefault(row.label, []).append(row)
    if guess is not None:
        axes.axhline(guess, color=drawing.SOFT, linestyle=(0, (1, 4)), linewidth=1, label="most frequent answer")
    for label, points in curves.items():
        _points(axes, sorted(points, key=cost), cost, label=label, **styles[label])
    axes.set_xlim(0, max(1.0, *(1.05 * cost(row) for row in rows)))
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")


def _points(axes: Any, rows: Sequence[Any], cost: Callable[[Any], float], **style: Any) -> None:
    """A line with the interval of each point."""
    x, y = [cost(row) for row in rows], [row.accuracy.value for row in rows]
    lows, highs = zip(*(_ends(row.accuracy) for row in rows))
    reach = [[at - low for at, low in zip(y, lows)], [high - at for at, high in zip(y, highs)]]
    axes.plot(x, y, **style)
    axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=style["color"], elinewidth=0.8, alpha=0.6)


def _ends(share: Any) -> tuple[float, float]:
    """Of its interval; without one, the value itself."""
    return (share.value if share.low is None else share.low, share.value if share.high is None else share.high)
