"""Tables of `adsc_training.py`."""

from __future__ import annotations

from typing import Any

from foveate import ADSC, Host

from tables.cells import table

NAMES = {
    "no training": "untrained",
    "LoRA, constant ratio": "LoRA on the language model",
    "LoRA, reverse curriculum": "the same, reverse curriculum",
    "LoRA, constant ratio, tower trained, too": "LoRA on the tower, too",
    "LoRA without compression": "LoRA without compression",
}
LAYERS = 10  # of a reference model's decoder
READING = 3  # the layer where its text begins to read the image


def retention(found: dict[str, Any]) -> str:
    """Of the stock model's accuracy, by visual tokens removed, for each way of training."""
    (study,) = found["models"].values()
    runs = {name: study["runs"][label] for label, name in NAMES.items() if label in study["runs"]}
    rows = []
    for row, *_ in zip(*runs.values()):
        removed = 1 - row["tokens"]
        cells = [next(other for other in run if other["budget"] == row["budget"]) for run in runs.values()]
        shares = (f"{100 * cell['retention']:.1f} %" for cell in cells)
        rows.append((f"{100 * removed:.1f} %" if removed else "none", *shares))
    return table(("visual tokens removed", *runs), rows, names=0)


def layers(found: dict[str, Any]) -> str:
    """Of the stock model's accuracy, by the layers where tokens leave: at the one budget that was asked for."""
    (study,) = found["models"].values()
    host = Host("qwen2_5_vl", 4, LAYERS, has_cls=False)
    rows = []
    for label, run in study["runs"].items():
        if not label.startswith("no training"):
            continue
        where = label.partition(", layers ")[2]
        trained = study["runs"][f"LoRA, constant ratio, layers {where}"]
        method = ADSC(keep=run[-1]["tokens"], layers=None if where == "auto" else tuple(map(int, where.split(","))))
        shares = (f"{100 * cells[-1]['retention']:.1f} %" for cells in (run, trained))
        cut = ", ".join(str(site.layer) for site in method.sites(host))
        rows.append((cut, _left(method, host), *shares))
    heads = ("layers", f"tokens left in layers {READING} to 6", "untrained", "LoRA on the language model")
    return table(heads, rows)


def _left(method: ADSC, host: Host) -> str:
    """The share when text begins to read, and what it is after the cut that follows, if any."""
    left, words = 1.0, ""
    for site in method.sites(host):
        left *= site.keep
        words = (
            f"{left:.2f}"
            if site.layer is None or site.layer <= READING
            else f"{words}, from {site.layer} on {left:.2f}"
        )
    return words
