"""The sweep as a picture. matplotlib is an extra, so it is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.lab import drawing
from foveate.lab.bench.result import DENSE, Result
from foveate.lab.bench.summary import Comparison, Spread, compare, crossovers
from foveate.lab.terminal import CommandError

Value = Callable[[Comparison], "Spread | None"]


def _share(value: float) -> Spread:
    return Spread(value, value, value)


#: Title, what is drawn, and whether more is better.
PANELS: tuple[tuple[str, Value], ...] = (
    ("first token, times as fast", lambda found: found.speed.get("first")),
    ("vision tower, times as fast", lambda found: found.speed.get("tower")),
    ("prefill, times as fast", lambda found: found.speed.get("prefill")),
    ("decoding, times as fast", lambda found: found.speed.get("decode")),
    ("first token: realised ÷ ideal", lambda found: _share(found.of_ideal)),
    ("peak memory, of the stock model's", lambda found: _share(found.peak)),
)


def draw(result: Result, path: Path) -> None:
    """Six panels over visual tokens for every model and batch; bands are quartiles, a star is a crossover."""
    import matplotlib

    groups: dict[tuple[str, int], dict[str, list[Comparison]]] = {}
    for case in result.cases:
        for label in case.lines:
            found = compare(case, label)
            if found is not None:
                curves = groups.setdefault((case.model, case.batch), {})
                curves.setdefault(label, []).append(found)
    if not groups:
        raise CommandError("there is nothing to draw yet: no method has been measured next to the stock model")
    with matplotlib.rc_context(drawing.STYLE):
        figure = _figure(result, groups)
        try:
            figure.savefig(path, dpi=drawing.DPI)
        except OSError as error:
            raise CommandError(f"cannot write the plot to {str(path)!r}: {error}") from None


def _figure(result: Result, groups: dict[tuple[str, int], dict[str, list[Comparison]]]) -> Any:
    from matplotlib.figure import Figure

    styles = drawing.styles(label for case in result.cases for label in case.lines if label != DENSE)
    figure = Figure(figsize=(drawing.WIDTH, 8.2 * len(groups) + 0.8), layout="constrained")
    rows = figure.subplots(3 * len(groups), 2, squeeze=False)
    for number, ((model, batch), curves) in enumerate(groups.items()):
        for axes, (title, value) in zip(rows[3 * number : 3 * number + 3].flat, PANELS):
            _panel(axes, curves, value, styles)
            if value is PANELS[0][1]:
                _crossovers(axes, result, model, batch, styles)
            axes.set_title(f"{model}, batch {batch}:\n{title}" if len(groups) > 1 else title)
    handles, names = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=3)
    settings = result.settings
    (model, batch), *others = groups
    what = "" if others else f"{model}, batch {batch}, "
    figure.suptitle(
        f"{what}{settings['device']}, threads: {settings['threads']}. Over the stock model in the same round:\n"
        "median and quartiles. The line at 1 is the stock model; a star: from here on it pays.",
        x=0.01,
        ha="left",
    )
    return figure


def _crossovers(axes: Any, result: Result, model: str, batch: int, styles: dict[str, dict[str, Any]]) -> None:
    """A star where the lower quartile crosses 1 between two sizes."""
    for found in crossovers(result):
        if (found.model, found.batch) == (model, batch) and found.tokens is not None and found.tokens > found.smallest:
            axes.plot(found.tokens, 1.0, marker="*", markersize=10, color=styles[found.label]["color"], zorder=3)


def _panel(axes: Any, curves: dict[str, list[Comparison]], value: Value, styles: dict[str, dict[str, Any]]) -> None:
    ticks: set[int] = set()
    highest = 1.0
    for label, several in curves.items():
        points = [(found.case.tokens, at) for found in several if (at := value(found)) is not None]
        points.sort(key=lambda point: point[0])
        x, low, high = [tokens for tokens, _ in points], [at.low for _, at in points], [at.high for _, at in points]
        ticks |= set(x)
        highest = max(highest, *high, *(at.median for _, at in points)) if points else highest
        axes.plot(x, [at.median for _, at in points], label=label, **styles[label])
        axes.fill_between(x, low, high, color=styles[label]["color"], alpha=0.12, linewidth=0)
        if len(points) == 1:  # a band of one point is nothing
            axes.vlines(x, low, high, color=styles[label]["color"], linewidth=1)
    axes.axhline(1.0, color=drawing.INK, linewidth=0.9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [f"{tick:,}" for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens")
    axes.set_ylim(0, 1.08 * highest)
    if len(ticks) == 1:  # a single size is a place on the axis, not all of it
        axes.set_xlim(min(ticks) / 4, 4 * max(ticks))
