"""Tables of `ipcv_choices.py`."""

from __future__ import annotations

from typing import Any

from tables.cells import table

NAMES = {"ipcv": "IPCV", "randomchoice": "random patches", "frozen": "frozen, not reconstructed"}


def qwen2_5_vl(found: dict[str, Any]) -> str:
    return choices(found, "qwen2_5_vl")


def llava(found: dict[str, Any]) -> str:
    return choices(found, "llava")


def choices(results: dict[str, Any], model: str) -> str:
    """All variants on one reference model, by what they are to tell."""
    found = results["references"][model]
    usual = found["variants"][found["groups"]["defaults"][0]]["options"]
    rows: list[tuple[str, ...]] = []
    for group, members in found["groups"].items():
        rows.append((f"**{group}**", *[""] * 6))
        for member in members:
            row = found["variants"][member]
            shares = (f"{row[key]:.1%}" for key in ("of_dense", "agrees", "tower_flops", "flops"))
            rows.append((_name(row["options"], usual), *map(str, row["depths"]), *shares))
    head = (
        f"{found['questions']} questions of the {results['split']} split; the stock model answers {found['dense']:.1%} of "
        "them. In percent of the stock model's:\n\n"
    )
    return head + table(("", "block", "stabilise", "right answers", "agrees", "tower FLOPs", "all FLOPs"), rows)


def encoder(results: dict[str, Any]) -> str:
    """The authors' encoder, by formula."""
    shape = results["authors_shape"]
    rows = [
        (name, *(f"{row[key]:.2f}" for row in shape))
        for key, name in (
            ("flops", "queries of kept patches only (here)"),
            ("all_queries", "queries of all patches (the authors' code)"),
        )
    ]
    return table(("keep", *(str(row["keep"]) for row in shape)), rows)


def _name(options: dict[str, Any], usual: dict[str, Any]) -> str:
    """The name, and what is no default (but for the depths, which have columns of their own)."""
    apart = [f"{k}={v}" for k, v in options.items() if k not in ("method", "block", "stabilise") and v != usual[k]]
    return ", ".join([NAMES[options["method"]], *apart])
