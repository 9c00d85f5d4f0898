"""Tables of what decisions cost and of how everything grows: `selector_cost.py`, `growth.py`."""

from __future__ import annotations

from typing import Any

from tables.cells import table

#: Seconds and bytes below which a growth is noise, and by how much noise may put an exponent above that of the stock model.
NOISE, SLACK = {"seconds": 5e-3, "bytes": float(2**20)}, 0.15
AIM = 0.02  # the largest share of the decoder layers that decisions should cost
NAMES = {"qwen2.5-vl-7b": "Qwen2.5-VL-7B", "llava-1.5-7b": "LLaVA-1.5-7B"}


def selectors(found: dict[str, Any], first: int = 12) -> str:
    """A row for each of the dearest methods: milliseconds, and their share of the decoder layers, by model and size."""
    return _selectors(found, [name for _, _, name in _dearest(found)[:first]])


def all_selectors(found: dict[str, Any]) -> str:
    """The page of all methods."""
    return f"# What the decisions of every method cost\n\n{_selectors(found, list(found['runs'][0]['methods']))}\n"


def _selectors(found: dict[str, Any], names: list[str]) -> str:
    runs, rows = found["runs"], []
    for name in names:
        cells = [f"`{name}`"]
        for run in runs:
            row = run["methods"][name]
            cells.append("refused" if "refused" in row else f"{row['seconds'] * 1e3:,.1f} ms, {_percent(row['share'])}")
        rows.append(cells)
    layers = [f"{run['layers']} x {run['layer_seconds']:.2f} s" for run in runs]
    return table(["", *map(_prompt, runs)], [["its decoder layers", *layers], *rows])


def dtype(found: dict[str, Any]) -> str:
    """The type of hidden states and weights."""
    return str(found["dtype"])


def most(found: dict[str, Any]) -> str:
    """The method whose decisions cost most, and how much, in a few words."""
    return _dearest(found)[0][1]


def above(found: dict[str, Any]) -> str:
    """The methods whose decisions cost more than they should somewhere, the dearest first; or ``none``."""
    return ", ".join(said for share, said, _ in _dearest(found) if share > AIM) or "none"


def _dearest(found: dict[str, Any]) -> list[tuple[float, str, str]]:
    """Of each method the largest share, that in words, and its name; the largest of all first."""
    shares: dict[str, tuple[float, str, str]] = {}
    for run in found["runs"]:
        for name, row in run["methods"].items():
            share = row.get("share", 0.0)  # (some are refused)
            said = f"{_percent(share)} (`{name}`, {_prompt(run)})"
            shares[name] = max(shares.get(name, (0.0, "", name)), (share, said, name))
    return sorted(shares.values(), reverse=True)


def _prompt(run: dict[str, Any]) -> str:
    video = f" in {run['frames']} frames" if run.get("frames", 1) > 1 else ""
    return f"{NAMES[run['model']]}, {run['visual']:,} visual tokens{video}"


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


def all_decisions(found: dict[str, Any]) -> str:
    """The page of what each method decides, beside the stock model's attention: exponents of time, then of memory."""
    axes = found["axes"]
    names = list(dict.fromkeys(name for part in axes.values() for name in part["decisions"]["sizes"]))
    parts = ["# How the decisions of every method grow"]
    for what in ("time", "memory"):
        rows = []
        for name in names:
            cells = (_cell(part["decisions"][what].get(name)) for part in axes.values())
            rows.append(("stock attention" if name == "attention" else f"`{name}`", *cells))
        parts.append(table((what, *axes), rows))
    return "\n\n".join(parts) + "\n"


def faster_decisions(found: dict[str, Any]) -> str:
    """Decisions that grow faster than the stock model's attention, in a few words."""
    return _faster(found, "decisions", "attention")


def faster_calls(found: dict[str, Any]) -> str:
    """Whole calls that grow faster than those of the stock model, in a few words."""
    return _faster(found, "calls", "stock")


def _faster(found: dict[str, Any], part: str, stock: str) -> str:
    worse = []
    for axis, parts in found["axes"].items():
        for what, key in (("time", "seconds"), ("memory", "bytes")):
            grown, sizes = parts[part][what], parts[part]["sizes"]
            bar = grown[stock]["last"]
            for name, one in grown.items():
                most = max(row[key] for row in sizes[name].values())
                if one is not None and most > NOISE[key] and one["last"] > max(bar, 1.0) + SLACK:
                    worse.append(f"{what} of `{name}` with {axis}, {one['last']:.2f} against {bar:.2f}")
    return "nothing" if not worse else "; ".join(worse)


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
