"""The table of what training a compressor is worth: `trained.py`."""

from __future__ import annotations

from typing import Any

from tables.cells import table


def systems(found: dict[str, Any]) -> str:
    """A row for each system: what it spends, accuracy before and after, and how far it is above what spends as much."""
    rows = []
    for name, system in found["systems"].items():
        lines = system["lines"]
        mine, share = lines["trained"], lines["trained"]["spent"][system["by"]]
        relative = system["relative"]
        cells = [f"{share:.0%} of {COUNTED[system['by']]}", *(_percent(lines[line]) for line in ("stock", "start"))]
        cells += [_percent(mine), *(_points(lines.get(line)) for line in ("start", "random", "stride", relative))]
        rows.append([f"`{name}`", *cells, f"`{relative}`", f"{system['minutes_of_training']:.0f}"])
    heads = ["", "spends", "stock", "untrained", "trained", "above untrained", "above Random", "above Stride"]
    return table([*heads, "above a relative", "which", "minutes"], rows)


#: What a budget counts, in a cell.
COUNTED = {"tokens": "tokens", "kv": "KV", "flops": "FLOPs"}


def _percent(line: dict[str, Any]) -> str:
    return f"{100 * line['accuracy']['value']:.1f}"


def _points(line: dict[str, Any] | None) -> str:
    """A difference and its interval, in points; bold where that leaves out 0; None: the budget is out of its reach."""
    if line is None:
        return "out of reach"
    value, low, high = (100 * line["trained_above"][end] for end in ("value", "low", "high"))
    said = f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{said}**" if low > 0 or high < 0 else said
