"""Accuracy over cost as SVG that follows the palette of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from evidence import Run

CONTROLS = ("random", "stride", "downsample")
MODELS = {"qwen2_5_vl": "Qwen2.5-VL", "llava": "LLaVA"}
COST = {"tokens": "visual tokens per decoder layer", "flops": "FLOPs of the whole call"}
DASHES = {"random": "2 3", "stride": "6 3", "downsample": "8 3 2 3"}

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 34, 12, 30, 40


@dataclass(frozen=True)
class Axes:
    """Data to pixels. Accuracy from 0 to 1; cost from 0 to ``most``."""

    most: float

    def x(self, cost: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * cost / self.most, 1)

    def y(self, accuracy: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - accuracy), 1)


def chart(run: Run, name: str) -> str:
    """One panel: the method, the controls of the same run, and the stock model's accuracy."""
    mine = run.of(name)
    controls = {label: rows for other in CONTROLS if other != name for label, rows in run.of(other).items()}
    costs = [row["spent"][run.by] for rows in (*mine.values(), *controls.values()) for row in rows]
    axes = Axes(min(1.0, -(-max(costs) // 0.25) * 0.25))
    parts = [*_frame(run, axes), *_stock(run, axes)]
    for label, rows in controls.items():
        style = f'stroke="var(--fv-soft)" stroke-width="1.3" stroke-dasharray="{DASHES.get(label, "")}"'
        parts += _line(rows, run.by, axes, label, style, "var(--fv-soft)", 1.6)
    for (label, rows), color in zip(mine.items(), ("var(--fv-kept)", "var(--fv-other)", "var(--fv-bad)")):
        parts += _band(rows, run.by, axes, color)
        parts += _line(rows, run.by, axes, label, f'stroke="{color}" stroke-width="2.2"', color, 3)
    says = f"Accuracy of {name} over {COST[run.by]}, on {MODELS.get(run.model, run.model)}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(says)}" font-size="10.5">'
        + "".join(parts)
        + "</svg>"
    )


def legend(found: Sequence[Run], name: str) -> str:
    """What the lines are, as one sentence of HTML."""
    labels = dict.fromkeys(label for run in found for label in run.of(name))
    colors = ("--fv-kept", "--fv-other", "--fv-bad")
    named = (f'<b style="color:var({color})">{escape(label)}</b>' for label, color in zip(labels, colors))
    controls = [control for control in CONTROLS if control != name and any(run.of(control) for run in found)]
    dashes = {"random": "dotted", "stride": "dashed", "downsample": "dash-dotted"}
    grey = ", ".join(f"{control} {dashes[control]}" for control in controls)
    return f"{', '.join(named)}; in grey {grey}; the line at the top: the stock model. Bands: 95 % intervals."


def _frame(run: Run, axes: Axes) -> list[str]:
    title = f"{MODELS.get(run.model, run.model)}, {run.questions:,} questions"
    parts = [f'<text class="fv-text" x="{LEFT}" y="14" font-weight="600" font-size="12">{escape(title)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = axes.y(share)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="var(--fv-line)" stroke-width=".7"/>')
        parts.append(f'<text class="fv-note" x="{LEFT - 5}" y="{y + 3.5}" text-anchor="end">{share:.0%}</text>')
    steps = round(4 * axes.most) if axes.most > 0.25 else 2
    for i in range(steps + 1):
        cost = axes.most * i / steps
        anchor = "end" if i == steps else "middle"
        parts.append(
            f'<text class="fv-note" x="{axes.x(cost)}" y="{HEIGHT - BOTTOM + 15}" text-anchor="{anchor}">{cost:.0%}</text>'
        )
    label = f"{COST[run.by]}, of the stock model's"
    parts.append(f'<text class="fv-note" x="{LEFT}" y="{HEIGHT - 6}">{label}</text>')
    return parts


def _stock(run: Run, axes: Axes) -> list[str]:
    y = axes.y(run.dense["accuracy"]["value"])
    return [
        f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="var(--md-default-fg-color)" stroke-width="1">'
        f"<title>stock model: {run.dense['accuracy']['value']:.1%}</title></path>"
    ]


def _points(rows: Sequence[dict[str, Any]], by: str) -> list[tuple[float, dict[str, Any]]]:
    return sorted(((row["spent"][by], row) for row in rows), key=lambda point: point[0])


def _line(
    rows: Sequence[dict[str, Any]], by: str, axes: Axes, label: str, style: str, color: str, dot: float
) -> list[str]:
    points = [(axes.x(cost), axes.y(row["accuracy"]["value"]), cost, row) for cost, row in _points(rows, by)]
    path = "L".join(f"{x} {y}" for x, y, *_ in points)
    parts = [f'<path d="M{path}" fill="none" stroke-linejoin="round" {style}/>']
    for x, y, cost, row in points:
        says = f"{label}: {row['accuracy']['value']:.1%} at {cost:.1%}"
        parts.append(f'<circle cx="{x}" cy="{y}" r="{dot}" fill="{color}"><title>{escape(says)}</title></circle>')
    return parts


def _band(rows: Sequence[dict[str, Any]], by: str, axes: Axes, color: str) -> list[str]:
    points = _points(rows, by)
    if len(points) < 2:
        return []
    low = [f"{axes.x(cost)} {axes.y(row['accuracy']['low'])}" for cost, row in points]
    high = [f"{axes.x(cost)} {axes.y(row['accuracy']['high'])}" for cost, row in reversed(points)]
    return [f'<path d="M{"L".join([*low, *high])}Z" fill="{color}" opacity=".14"/>']
