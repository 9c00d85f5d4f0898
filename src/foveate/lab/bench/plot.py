"""The sweep as a picture. matplotlib is an extra, so it is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.lab.bench.result import DENSE, Result
from foveate.lab.bench.summary import Comparison, Spread, compare, crossovers
from foveate.lab.terminal import CommandError

Value = Callable[[Comparison], "Spread | None"]
#: Controls are grey, so that methods stand out.
CONTROLS = {"random": ":", "stride": "--", "downsample": "-."}


def _share(value: float) -> Spread:
    return Spread(value, value, value)


#: Title, what is drawn, and whether more is better.
PANELS: tuple[tuple[str, Value], ...] = (
    ("speed-up of the first token", lambda found: found.speed.get("first")),
    ("speed-up of the vision tower", lambda found: found.speed.get("tower")),
    ("speed-up of the prefill", lambda found: found.speed.get("prefill")),
    ("speed-up of decoding", lambda found: found.speed.get("decode")),
    ("first token: realised ÷ ideal", lambda found: _share(found.of_ideal)),
    ("peak memory, share of the stock model's", lambda found: _share(found.peak)),
)


def draw(result: Result, path: Path) -> None:
    """Six panels over visual tokens for every model and batch; bands are quartiles, a star is a crossover."""
    from matplotlib.figure import Figure

    groups: dict[tuple[str, int], dict[str, list[Comparison]]] = {}
    for case in result.cases:
        for label in case.lines:
            found = compare(case, label)
            if found is not None:
                curves = groups.setdefault((case.model, case.batch), {})
                curves.setdefault(label, []).append(found)
    if not groups:
        raise CommandError("there is nothing to draw yet: no method has been measured next to the stock model")
    labels = list(dict.fromkeys(label for case in result.cases for label in case.lines if label != DENSE))
    styles = _styles(labels)
    figure = Figure(figsize=(15, 7.5 * len(groups)), layout="constrained")
    rows = figure.subplots(2 * len(groups), 3, squeeze=False)
    for number, ((model, batch), curves) in enumerate(groups.items()):
        for axes, (title, value) in zip(rows[2 * number : 2 * number + 2].flat, PANELS):
            _panel(axes, curves, value, styles)
            if value is PANELS[0][1]:
                _crossovers(axes, result, model, batch, styles)
            axes.set_title(f"{model}, batch {batch}: {title}" if len(groups) > 1 else title, fontsize="medium")
    handles, names = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize="small")
    settings = result.settings
    (model, batch), *others = groups
    what = "" if others else f"{model}, batch {batch}: "
    figure.suptitle(
        f"{what}over the stock model in the same round, median and quartiles "
        f"({settings['device']}, threads: {settings['threads']})",
        fontsize="medium",
    )
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise CommandError(f"cannot write the plot to {str(path)!r}: {error}") from None


def _crossovers(axes: Any, result: Result, model: str, batch: int, styles: dict[str, dict[str, Any]]) -> None:
    """A star where the lower quartile crosses 1 between two sizes."""
    for found in crossovers(result):
        if (found.model, found.batch) == (model, batch) and found.tokens is not None and found.tokens > found.smallest:
            axes.plot(found.tokens, 1.0, marker="*", markersize=10, color=styles[found.label]["color"], zorder=3)


def _styles(labels: list[str]) -> dict[str, dict[str, Any]]:
    """A colour for each method; grey for controls."""
    styles: dict[str, dict[str, Any]] = {}
    coloured = [label for label in labels if label.partition("(")[0] not in CONTROLS]
    for label in labels:
        if label in coloured:
            styles[label] = {"color": f"C{coloured.index(label) % 10}"}
        else:
            styles[label] = {"color": "0.5", "linestyle": CONTROLS[label.partition("(")[0]]}
    return styles


def _panel(axes: Any, curves: dict[str, list[Comparison]], value: Value, styles: dict[str, dict[str, Any]]) -> None:
    ticks: set[int] = set()
    for label, several in curves.items():
        points = [(found.case.tokens, at) for found in several if (at := value(found)) is not None]
        points.sort(key=lambda point: point[0])
        x = [tokens for tokens, _ in points]
        ticks |= set(x)
        axes.plot(
            x, [at.median for _, at in points], marker="o", markersize=3, linewidth=1.3, label=label, **styles[label]
        )
        axes.fill_between(
            x,
            [at.low for _, at in points],
            [at.high for _, at in points],
            color=styles[label]["color"],
            alpha=0.12,
            linewidth=0,
        )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), [f"{tick:,}" for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
