"""What lmms-eval says of each answer, as one number per question, and its own numbers per task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.lab.asker import Cost
from foveate.lab.evaluation.store import check_header
from foveate.lab.terminal import CommandError
from foveate.serialise import from_json


@dataclass(frozen=True)
class Scored:
    """The answers of one entry to one task.

    Attributes:
        scores: by the number of the question; more is better.
        official: what lmms-eval makes of them: metric -> value.
    """

    scores: dict[str, float]
    official: dict[str, float]


@dataclass(frozen=True)
class Finished:
    """One entry on one name that was asked for, which may be a group of tasks.

    Attributes:
        tasks: by name, those without a score per question, too.
        cost: mean over the questions; None: of the stock model.
    """

    tasks: dict[str, Scored]
    cost: Cost | None


def finished(results: Mapping[str, Any], costs: Sequence[Cost]) -> Finished:
    """What `lmms_eval.evaluator.simple_evaluate` returned, with logged samples."""
    return Finished(
        {task: _scored(task, samples, results) for task, samples in sorted(results["samples"].items())}, _mean(costs)
    )


def _scored(task: str, samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> Scored:
    config = results["configs"][task]
    better = results["higher_is_better"].get(task, {})
    metrics = [_name(each["metric"]) for each in config.get("metric_list") or ()] or list(better)
    usable = [name for name in metrics if better.get(name) is not False]
    key = config.get("score_key") or "score"
    scores: dict[str, float] = {}
    for sample in samples:
        # Where a task filters answers in several ways, a question is there several times: the first filter counts.
        name = str(sample["doc_id"])
        found = next((score for score in (_number(sample.get(m), key) for m in usable) if score is not None), None)
        if found is not None and name not in scores:
            scores[name] = found
    official = {
        metric: float(value)
        for metric, value in results["results"].get(task, {}).items()
        if "," in metric and "_stderr" not in metric and _is_number(value)
    }
    if len(scores) < len({str(sample["doc_id"]) for sample in samples}):
        scores = {}  # some questions only: not the task
    return Scored(scores, official)


def _name(metric: Any) -> str:
    return metric if isinstance(metric, str) else str(getattr(metric, "__name__", metric))


def _number(value: Any, key: str) -> float | None:
    """The score in what a task says of one answer: a number, or a mapping that has one under ``key``."""
    if isinstance(value, Mapping):
        value = value.get(key)
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return False
    return math.isfinite(float(value))


def _mean(costs: Sequence[Cost]) -> Cost | None:
    if not costs:
        return None
    rows = [asdict(cost) for cost in costs]
    # Exact sums: a run that was interrupted has its answers in another order.
    return Cost(**{name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]})


def save(path: Path, header: dict[str, Any], found: Finished) -> None:
    """Write it whole or not at all."""
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"header": header, **asdict(found)}, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise CommandError(f"cannot keep scores in {str(path)!r}: {error}") from None


def read(path: Path, header: dict[str, Any]) -> Finished | None:
    """What was written, or None. A file about something else is an error."""
    if not path.is_file():
        return None
    try:
        data = from_json(path.read_text(encoding="utf-8"))
        check_header(path, data["header"], header)
        tasks = {name: Scored(**scored) for name, scored in data["tasks"].items()}
        return Finished(tasks, None if data["cost"] is None else Cost(**data["cost"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CommandError(f"{str(path)!r} is not a file of scores: delete it") from None
