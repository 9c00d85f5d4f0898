"""What each method costs and keeps, from the committed results, in one table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import curves
import evidence
import facts

HALF, FEW = (0.5,), (0.25, 0.2)
MODELS = ("qwen2_5_vl", "llava")


def table() -> str:
    """Methods that were measured alone, the best at half of the tokens first."""
    head = ["method"]
    head += [f"{curves.MODELS[model]}, {share}" for share in ("half", "a quarter") for model in MODELS]
    rows = sorted((row for name in facts.methods() for row in _rows(name)), key=lambda row: -row[0])
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *(cells for _, cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(name: str) -> Iterator[tuple[float, list[str]]]:
    runs = {run.model: run for run in evidence.of_method(name) if run.by == "tokens"}
    labels = dict.fromkeys(label for run in runs.values() for label in run.of(name) if "+" not in label)
    for label in labels:
        half = [_at(runs, model, name, label, HALF) for model in MODELS]
        few = [_at(runs, model, name, label, FEW) for model in MODELS]
        method = facts.methods()[name]
        title = method["class"] + label.removeprefix(name)
        link = f"[{title}](catalog/{name}.md)"
        order = sum(row["retention"]["value"] for row in half if row)
        yield order, [f"*{link}*" if method["control"] else link, *map(_cell, [*half, *few])]


def _at(runs: dict[str, evidence.Run], model: str, name: str, label: str, budgets: tuple[float, ...]) -> Any:
    """The row at the first of the budgets that was measured."""
    rows = runs[model].of(name).get(label, []) if model in runs else []
    return next((row for budget in budgets for row in rows if row["budget"] == budget), None)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    fifth = "" if row["budget"] in (*HALF, FEW[0]) else " †"
    return f"**{row['retention']['value']:.1%}** ({row['spent']['flops']:.0%}){fifth}"
