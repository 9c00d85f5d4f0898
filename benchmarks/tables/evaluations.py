"""Tables, pages and pictures of what ``foveate eval`` found."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.lab import typed
from foveate.lab.evaluation import report
from foveate.lab.evaluation.plan import Missed
from foveate.lab.evaluation.request import Reference
from foveate.lab.evaluation.results import Row, Spent
from foveate.lab.evaluation.statistics import Paired, Share
from foveate.lab.evaluation.table import Evaluation
from foveate.methods import list_methods

from tables.cells import MODELS, table

#: How a table calls what a report calls by its label; controls and bounds are in italics.
NAMES = {
    "dense": "dense",
    "oracle": "*oracle*",
    "luvc": "LUVC",
    "spu": "SPU (LUVC's pruner)",
    "adsc": "ADSC, untrained",
    "ipcv+adsc": "IPCV + ADSC",
    "divprune": "DivPrune",
    "visionzip": "VisionZip",
    "tome": "ToMe",
    "fastv(layer=4)": "FastV, layer 4",
    "fastv": "FastV, layer 2",
    "vtw": "VTW",
    "v2drop": "V2Drop",
    "random": "*Random*",
    "stride": "*Stride*",
    "downsample": "*Downsample*",
    "antioracle": "*anti-oracle* (questions with evidence)",
    "blind": "*blind*",
}

#: What a method has to beat.
CONTROLS = ("random", "stride", "downsample")
#: What is no method: it knows the answers, or the model is as it was.
BOUNDS = ("dense", "blind", "oracle", "antioracle")


def page(found: dict[str, Any]) -> str:
    """The report as ``foveate eval`` writes it."""
    return report.markdown(evaluation(found).report())


def picture(found: dict[str, Any]) -> bytes:
    """The curve as ``foveate eval`` draws it."""
    with tempfile.TemporaryDirectory() as folder:
        read = evaluation(found)
        report.write(replace(read, request=replace(read.request, out=Path(folder))))  # type: ignore[arg-type]
        return (Path(folder) / report.CURVE).read_bytes()


def reference(*results: dict[str, Any]) -> str:
    """Accuracy of everything at three budgets, the models side by side."""
    budgets = (0.5, 0.25, 0.1)
    heads = [
        f"{MODELS[found['model']]} {budget}" if budget == budgets[0] else str(budget)
        for found in results
        for budget in budgets
    ]
    labels = _ordered({row["label"] for found in results for row in found["rows"]})
    rows = []
    for label in labels:
        cells = [NAMES.get(label, label)]
        for found in results:
            cells += _at(found, label, budgets)
        rows.append(cells)
    return table(["", *heads], rows)


def differences(found: dict[str, Any]) -> str:
    """Accuracy at every budget, less the stock model's, with the 95 % interval of that difference."""
    rows = found["rows"]
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None}, reverse=True)
    lines = []
    for label in _ordered({row["label"] for row in rows if row["label"] != "dense"}):
        cells = [NAMES.get(label, label)]
        plain = _row(found, label, None)
        if plain is not None:
            cells += [_difference(plain), *[""] * (len(budgets) - 1)]
        else:
            cells += [_difference(_row(found, label, budget)) for budget in budgets]
        lines.append(cells)
    dense = next(row for row in rows if row["label"] == "dense")
    head = f"Points against the stock model's {_percent(dense)} %, on {found['questions']:,} questions:\n\n"
    return head + table(["", *map(str, budgets)], lines)


def _difference(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    share = row["difference"]
    return f"{100 * share['value']:+.1f} ({100 * share['low']:+.1f} to {100 * share['high']:+.1f})"


def everything(*results: dict[str, Any]) -> str:
    """Accuracy of everything at every budget, the models side by side; bold what is above the best control's.

    In brackets the FLOPs that were really spent. A cell is bold if the lower end of its 95 % interval is above the best of
    Random, Stride and Downsample at that budget.
    """
    budgets = sorted({row["budget"] for found in results for row in found["rows"]} - {None}, reverse=True)
    columns = [(found, budget) for found in results for budget in budgets]
    best = {
        number: max(row["accuracy"]["value"] for name in CONTROLS if (row := _row(found, name, budget)))
        for number, (found, budget) in enumerate(columns)
    }
    lines = []
    for label in _ordered({row["label"] for found in results for row in found["rows"]}):
        cells = [NAMES.get(label) or _class_name(label)]
        for number, (found, budget) in enumerate(columns):
            row = _row(found, label, budget)
            if row is None and budget == budgets[0]:
                row = _row(found, label, None)  # it has no dial: in the first column of its model
            if row is None:
                cells.append("-" if _row(found, label, None) is None else "")
                continue
            cell = _percent(row) if label in BOUNDS else f"{_percent(row)} ({row['spent']['flops']:.2f})"
            better = row["budget"] is not None and row["accuracy"]["low"] > best[number] and label not in BOUNDS
            cells.append(f"**{cell}**" if better else cell)
        lines.append(cells)
    heads = [f"{MODELS[found['model']]} {budget}" for found, budget in columns]
    return table(["", *heads], lines)


def settings(*results: dict[str, Any]) -> str:
    """Methods as their options say, the models side by side: points against the stock model, FLOPs and KV memory."""
    labels = dict.fromkeys(row["label"] for found in results for row in found["rows"] if row["label"] != "dense")
    lines = []
    for label in labels:
        cells = [f"`{label}`"]
        for found in results:
            row = _row(found, label, None)
            spent = None if row is None else row["spent"]
            cells += [
                _difference(row),
                *(["-", "-"] if spent is None else [f"{spent[key]:.2f}" for key in ("flops", "kv")]),
            ]
        lines.append(cells)
    return table(["", *(head for found in results for head in (MODELS[found["model"]], "FLOPs", "KV"))], lines)


def systems(found: dict[str, Any]) -> str:
    """Accuracy at every budget, in brackets the FLOPs that were really spent."""
    rows = found["rows"]
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None}, reverse=True)
    lines = []
    for label in _ordered({row["label"] for row in rows if row["budget"] is not None}):
        cells = [NAMES.get(label, label)]
        for budget in budgets:
            row = _row(found, label, budget)
            cells.append("-" if row is None else f"{_percent(row)} ({row['spent']['flops']:.2f})")
        lines.append(cells)
    dense = next(row for row in rows if row["label"] == "dense")
    head = f"**{MODELS[found['model']]}**, dense {_percent(dense)}:\n\n"
    return head + table(["", *map(str, budgets)], lines)


def evaluation(found: dict[str, Any]) -> Evaluation:
    """What `foveate.lab.evaluation.results.Result.to_dict` made plain, as it was."""
    known = ("command", "model", "seeds", "by", "questions", "rows", "out_of_reach", "notes")
    return Evaluation(
        request=typed.request(Reference, found["command"]),
        model=found["model"],
        identity={key: value for key, value in found.items() if key not in known},
        rows=tuple(map(_read_row, found["rows"])),
        missed=tuple(Missed(**missed) for missed in found["out_of_reach"]),
        notes=tuple(found["notes"]),
    )


def _read_row(row: dict[str, Any]) -> Row:
    keys = ("difference", "retention", "group_a", "group_b")
    shares = {key: None if row.get(key) is None else Share(**row[key]) for key in keys}
    return Row(
        **{
            **row,
            **shares,
            "accuracy": Share(**row["accuracy"]),
            "paired": Paired(**row["paired"]),
            "spent": Spent(**row["spent"]),
            "chance": tuple(row["chance"]),
            "tasks": {task: Share(**share) for task, share in row["tasks"].items()},
            "seeds": {int(seed): value for seed, value in row["seeds"].items()},
        }
    )


def _class_name(label: str) -> str:
    """What a method is called in Python, without its options: `DivPrune` for ``divprune``."""
    return " + ".join(list_methods()[term.split("(")[0]].__name__ for term in label.split("+"))


def _ordered(labels: set[str]) -> list[str]:
    """As in `NAMES`; what that does not know comes last."""
    return [*(name for name in NAMES if name in labels), *sorted(labels - set(NAMES))]


def _at(found: dict[str, Any], label: str, budgets: Sequence[float]) -> list[str]:
    """Cells of a label; what has no budget has one cell."""
    plain = _row(found, label, None)
    if plain is not None:
        return [_percent(plain), *[""] * (len(budgets) - 1)]
    rows = [_row(found, label, budget) for budget in budgets]
    return ["-" if row is None else _percent(row) for row in rows]


def _row(found: dict[str, Any], label: str, budget: float | None) -> dict[str, Any] | None:
    rows = [row for row in found["rows"] if row["label"] == label and row["budget"] == budget]
    return rows[0] if rows else None


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']['value']:.1f}"
