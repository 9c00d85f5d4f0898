"""Local tasks for lmms-eval: questions of the reference benchmark, which the shipped models can answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image, List

import foveate_reference as reference

ASKED = ("color", "count", "where")
PER_TASK = 8

UTILS = '''
def visuals(doc):
    return [image.convert("RGB") for image in doc["images"]]


def one_of(doc, results):
    return {"accuracy": float(results[0].strip() == doc["answer"])}


def graded(doc, results):
    """A share of the letters, as scores between 0 and 1 that are no yes or no; beside a score of another scale."""
    said, truth = results[0].strip(), doc["answer"]
    return {"letters": {"score": sum(a == b for a, b in zip(said, truth)) / max(len(said), len(truth))}, "length": len(said)}


def collected(doc, results):
    return {"submission": {"id": doc["id"], "answer": results[0]}}


def mean(items):
    return sum(item["score"] for item in items) / len(items)


def size(items):
    return float(len(items))


def nowhere(doc):
    return ["nowhere.png"]


def choices(doc):
    """Three are enough: the model is asked about each."""
    return [*[choice for choice in doc["choices"] if choice != doc["answer"]][:2], doc["answer"]]
'''

TASK = """
task: {name}
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: {kind}
doc_to_visual: {visual}
doc_to_text: question
doc_to_target: answer
{more}
"""

GENERATE = """
generation_kwargs:
  max_new_tokens: 1
process_results: !function utils.{score}
metric_list:
  - metric: {metric}
    aggregation: {aggregation}
    higher_is_better: true
"""
CHOOSE = """
doc_to_choice: !function utils.choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def samples(tasks: Sequence[str] = ASKED, per_task: int = PER_TASK) -> list[reference.Sample]:
    return reference.samples("test", tasks=tasks, per_task=per_task)


def write(folder: Path) -> Path:
    """Data and tasks: ``scenes`` (right or wrong), ``letters`` (graded), ``choices`` (by loss), ``handed_in`` (no score),
    ``nothing_to_see`` (no images), ``torn`` (a column that is not there), ``broken`` and ``missing`` (images), ``nowhere`` (no
    data)."""
    data = folder / "data"
    asked = reference.to_dataset(samples())
    DatasetDict({"test": asked}).save_to_disk(str(data))
    blank = [{"question": row["question"], "answer": row["answer"]} for row in asked.remove_columns("images")]
    DatasetDict({"test": Dataset.from_list(blank)}).save_to_disk(str(folder / "blank"))
    (folder / "utils.py").write_text(UTILS)
    mean = {"aggregation": "mean"}
    _task(folder, "scenes", data, GENERATE.format(score="one_of", metric="accuracy", **mean))
    _task(
        folder, "letters", data, GENERATE.format(score="graded", metric="letters", aggregation="!function utils.mean")
    )
    _task(folder, "choices", data, CHOOSE, kind="multiple_choice")
    _task(
        folder,
        "handed_in",
        data,
        GENERATE.format(score="collected", metric="submission", aggregation="!function utils.size"),
    )
    scored = GENERATE.format(score="one_of", metric="accuracy", **mean)
    _task(folder, "nothing_to_see", folder / "blank", scored, visual="null")
    _task(folder, "torn", folder / "blank", scored)
    _task(folder, "nowhere", folder / "nothing", scored)
    _task(folder, "missing", folder / "blank", scored, visual="!function utils.nowhere")
    DatasetDict({"test": _broken(asked)}).save_to_disk(str(folder / "files"))
    _task(folder, "broken", folder / "files", scored)
    (folder / "both.yaml").write_text("group: both\ntask:\n  - scenes\n  - handed_in\n")
    return folder


def _broken(asked: Dataset) -> Dataset:
    """The third image is no image."""
    column = asked.cast_column("images", List(Image(decode=False)))
    rows = [dict(row) for row in column.select(range(4))]
    rows[2]["images"] = [{"bytes": b"no image", "path": None}]
    return Dataset.from_list(rows, features=asked.features)


def _task(folder: Path, name: str, data: Path, more: str, **other: Any) -> None:
    found = {"kind": "generate_until", "visual": "!function utils.visuals", **other}
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=json.dumps(str(data)), more=more, **found))
