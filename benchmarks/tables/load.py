"""Tables of `load.py`: what methods are worth under a mixed load."""

from __future__ import annotations

import statistics
from typing import Any

from tables.cells import table

HEADS = ("open", "", "requests/s", "tokens/s", "TTFT p50", "TTFT p99", "a token", "KV in use")
#: figure -> how the stock model's is written
FIGURES = {
    "requests_per_second": "{:.2f}",
    "tokens_per_second": "{:.0f}",
    "ttft_p50": "{:.2f} s",
    "ttft_p99": "{:.2f} s",
    "per_token": "{:.3f} s",
    "kv": "{:.1%}",
}


def curve(found: dict[str, Any]) -> str:
    """For each number of open requests, the stock figures and what methods are over these: median, smallest, largest."""
    rows = []
    for n, stock in found["methods"]["stock"].items():
        for name, loads in found["methods"].items():
            if name == "stock":
                cells = [how.format(statistics.median(each[key] for each in stock)) for key, how in FIGURES.items()]
            else:
                cells = [_times([a[key] / b[key] for a, b in zip(loads[n], stock) if b[key]]) for key in FIGURES]
            rows.append([n, _spelled(name), *cells])
    return table(HEADS, rows, names=2)


def graphs(found: dict[str, Any]) -> str:
    """Which share of the answers is the same with CUDA graphs and without."""
    rows = [[_spelled(name), f"{share:.0%}"] for name, share in found["same_with_graphs"].items()]
    return table(("", "same answers with CUDA graphs as without"), rows)


def _spelled(name: str) -> str:
    method, comma, rest = name.partition("), ")
    return name if name.startswith("stock") else f"`{method}{')' if comma else ''}`{', ' * bool(comma)}{rest}"


def _times(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    middle = f"{statistics.median(ratios):.2f}x"
    return middle if len(ratios) == 1 else f"{middle} ({min(ratios):.2f}-{max(ratios):.2f})"
