"""Tables of what decisions cost and of how everything grows: `selector_cost.py`, `growth.py`."""

from __future__ import annotations

from typing import Any

from tables.cells import table

#: Seconds below which a growth is that of noise, and how much more than attention's an exponent may be for the same reason.
NOISE, SLACK = 5e-3, 0.15
AIM = 0.02  # the largest share of the decoder layers that decisions should cost
NAMES = {"qwen2.5-vl-7b": "Qwen2.5-VL-7B", "llava-1.5-7b": "LLaVA-1.5-7B"}


def selectors(found: dict[str, Any]) -> str:
    """A row for each method: milliseconds, and their share of the decoder layers, by model and size."""
    runs = found["runs"]
    heads = [f"{NAMES[run['model']]}, {run['visual']:,} visual tokens" for run in runs]
    rows = []
    for name in runs[0]["methods"]:
        cells = [f"`{name}`"]
        for run in runs:
            row = run["methods"][name]
            cells.append("refused" if "refused" in row else f"{row['seconds'] * 1e3:,.1f} ms, {_percent(row['share'])}")
        rows.append(cells)
    layers = [f"{run['layers']} x {run['layer_seconds']:.2f} s" for run in runs]
    return table(["", *heads], [["its decoder layers", *layers], *rows])


def most(found: dict[str, Any]) -> str:
    """The method whose decisions cost most, and how much, in a few words."""
    return _dearest(found)[0][1]


def above(found: dict[str, Any]) -> str:
    """The methods whose decisions cost more than they should somewhere, the dearest first; or ``none``."""
    return ", ".join(said for share, said in _dearest(found) if share > AIM) or "none"


def _dearest(found: dict[str, Any]) -> list[tuple[float, str]]:
    """Of each method the largest share, and that in words, the largest of all first."""
    shares: dict[str, tuple[float, str]] = {}
    for run in found["runs"]:
        where = f"{NAMES[run['model']]}, {run['visual']:,} visual tokens"
        for name, row in run["methods"].items():
            share = row.get("share", 0.0)  # (some are refused)
            shares[name] = max(shares.get(name, (0.0, "")), (share, f"{_percent(share)} (`{name}`, {where})"))
    return sorted(shares.values(), reverse=True)


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else "< 0.01%"


def calls(found: dict[str, Any]) -> str:
    """Exponents of whole prefills: of time, then of memory, a row for what grows."""
    axes = found["axes"]
    names = list(next(iter(axes.values()))["calls"]["sizes"])
    parts = []
    for what in ("time", "memory"):
        rows = [
            (axis, _sizes(found, axis), *(_cell(part["calls"][what].get(n)) for n in names))
            for axis, part in axes.items()
        ]
        parts.append(
            table((what, "sizes", *(name if name == "stock" else f"`{name}`" for name in names)), rows, names=2)
        )
    return "\n\n".join(parts)


def decisions(found: dict[str, Any]) -> str:
    """Exponents of what each method decides, beside the stock model's attention: of time, then of memory."""
    axes = found["axes"]
    names = list(dict.fromkeys(name for part in axes.values() for name in part["decisions"]["sizes"]))
    parts = []
    for what in ("time", "memory"):
        rows = []
        for name in names:
            cells = (_cell(part["decisions"][what].get(name)) for part in axes.values())
            rows.append(("stock attention" if name == "attention" else f"`{name}`", *cells))
        parts.append(table((what, *axes), rows))
    return "\n\n".join(parts)


def faster(found: dict[str, Any]) -> str:
    """What grows faster than the stock model's attention, in a few words."""
    worse = []
    for axis, part in found["axes"].items():
        decided = part["decisions"]
        stock = decided["time"]["attention"]["last"]
        for name, grown in decided["time"].items():
            seconds = max(row["seconds"] for row in decided["sizes"][name].values())
            if grown is not None and seconds > NOISE and grown["last"] > max(stock, 1.0) + SLACK:
                worse.append(f"`{name}` with {axis}, {grown['last']:.2f} against {stock:.2f}")
    return "nothing" if not worse else ", ".join(worse)


def _sizes(found: dict[str, Any], axis: str) -> str:
    sizes = sorted(int(size) for size in found["axes"][axis]["calls"]["sizes"]["stock"])
    return f"{sizes[0]:,} to {sizes[-1]:,}"


def _cell(grown: dict[str, Any] | None) -> str:
    if grown is None:
        return "-"
    if "slope" not in grown:
        return f"last {grown['last']:.2f}"
    low, high = grown["interval"]
    return f"{grown['slope']:.2f} ({low:.2f} to {high:.2f}), last {grown['last']:.2f}"
