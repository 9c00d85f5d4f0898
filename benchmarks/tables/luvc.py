"""Tables of `luvc_choices.py`."""

from __future__ import annotations

import math
from typing import Any

from tables.cells import table


def choices(found: dict[str, Any]) -> str:
    """A table for each question that was asked, for each model."""
    return "\n\n".join(part for key, study in found.items() for part in _study(key, study["rows"]))


def _study(key: str, rows: dict[str, Any]) -> list[str]:
    n, dense = rows["stock"]["n"], rows["stock"]["accuracy"]
    error = math.sqrt(dense * (1 - dense) / n)
    parts = [f"**{key}**: stock model {dense:.1%} of {n} questions (standard error {error:.1%})"]
    for group in dict.fromkeys(row["group"] for row in rows.values() if row["group"] != "stock"):
        lines = []
        for row in (row for row in rows.values() if row["group"] == group):
            name = row["name"] + ("" if row["reachable"] else " (budget out of reach)")
            costs = (f"{row[cost]:.2f}" for cost in ("prefill", "tower", "tokens"))
            lines.append((name, f"{row['accuracy']:.1%}", f"{row['accuracy'] / dense:.1%}", *costs))
        parts.append(table((group, "accuracy", "of stock", "LLM FLOPs", "tower FLOPs", "mean tokens"), lines))
    return parts
