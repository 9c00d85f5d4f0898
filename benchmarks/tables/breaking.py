"""Tables of what breaks when visual tokens are withdrawn: `breaking.py`."""

from __future__ import annotations

from typing import Any

from tables.cells import table


def depth(found: dict[str, Any]) -> str:
    """A row for each layer: what the image is still worth there, random survivors, and methods against these."""
    part = found["depth"]
    names = [name for name in part["layers"][-1] if isinstance(part["layers"][-1][name], dict) and name != "image"]
    rows = []
    for row in part["layers"]:
        cells = [f"{row['none']:.1f}", _points(row["image"]), f"{row['random']:.1f}"]
        rows.append([str(row["layer"]), *cells, *(_points(row[name]) if name in row else "" for name in names)])
    heads = ["before layer", "none stays", "what the image is worth", "random tenth", *(f"`{name}`" for name in names)]
    return table(heads, rows)


def abilities(found: dict[str, Any]) -> str:
    """A row for each group of tasks: the stock model's accuracy, and what each method loses."""
    part = found["abilities"]
    heads = ["", "questions", "stock", *(f"`{name}`" for name in part["methods"])]
    rows = [
        [group, str(n), f"{part['stock'][group]:.1f}", *(_points(m[group]) for m in part["methods"].values())]
        for group, n in part["questions"].items()
    ]
    return table(heads, rows)


def positions(found: dict[str, Any]) -> str:
    """A row for each method: where its survivors are, and accuracy with positions kept, and with new numbers against that."""
    heads = ["", "in the lower half"]
    heads += [each for group in ("grounding", "attributes") for each in (group, f"{group}, numbered anew")]
    rows = []
    for name, row in found["positions"]["methods"].items():
        cells = [f"`{name}`", f"{row['lower']:.0f}%"]
        for group in ("grounding", "attribute"):
            cells += [f"{row[group]['keep']:.1f}", _points(row[group]) if "points" in row[group] else "refused"]
        rows.append(cells)
    return table(heads, rows)


def turns(found: dict[str, Any]) -> str:
    """A row for each method: the second question alone, on the cache that the first one left, and the difference."""
    rows = [
        [name if name == "stock" else f"`{name}`", f"{row['alone']:.1f}", f"{row['later']:.1f}", _points(row)]
        for name, row in found["turns"]["methods"].items()
    ]
    return table(["", "asked alone", "asked second", "difference"], rows)


def _points(cell: dict[str, Any]) -> str:
    """A difference in points and its interval; bold where that leaves out 0."""
    said = f"{cell['points']:+.1f} ± {cell['half']:.1f}"
    return f"**{said}**" if abs(cell["points"]) > cell["half"] else said
