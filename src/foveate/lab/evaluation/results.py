"""From answers to numbers: one `Row` per line of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from foveate.lab import typed
from foveate.lab.evaluation import statistics
from foveate.lab.evaluation.asking import Cost
from foveate.lab.evaluation.plan import Entry, Missed
from foveate.lab.evaluation.request import Contest
from foveate.lab.evaluation.statistics import Paired, Share
from foveate.lab.evaluation.store import Record

if TYPE_CHECKING:
    from foveate_reference.data import Sample


@dataclass(frozen=True)
class Question:
    """What must be known of a question to judge its answer: no images."""

    task: str
    truth: str
    choices: int
    has_evidence: bool

    @classmethod
    def of(cls, sample: Sample) -> Question:
        return cls(sample.task, sample.answer, len(sample.choices), any(cells.any() for cells in sample.evidence))


@dataclass(frozen=True)
class Spent:
    """Costs over those of the stock model: visual tokens per decoder layer, FLOPs of the call, KV bytes."""

    tokens: float
    flops: float
    kv: float

    @classmethod
    def of(cls, cost: Cost) -> Spent:
        return cls(*(cost.share(by) for by in ("tokens", "flops", "kv")))


class Line(Protocol):
    """What every table has of an entry, whatever the questions were."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def label(self) -> str: ...
    @property
    def budget(self) -> float | None: ...
    @property
    def spent(self) -> Spent: ...


Q = TypeVar("Q", bound=Contest)
L = TypeVar("L", bound=Line)


@dataclass(frozen=True)
class Result(Generic[Q, L]):
    """What came out, whatever the questions were.

    Attributes:
        request: what was measured.
        model: its name or folder.
        identity: weights, data and versions, as in the header of every file of answers.
        rows: one for each entry.
        missed: budgets out of a method's reach.
        notes: what was left out, and why.
    """

    words: ClassVar[str]  # of the command

    request: Q
    model: str
    identity: dict[str, Any]
    rows: tuple[L, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return self.request.out

    @property
    def command(self) -> str:
        """What repeats the run, but for its folder."""
        return typed.command(self.words, self.request)

    def facts(self) -> dict[str, Any]:
        """What is said of the questions."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the same for a run that was interrupted and one that was not."""
        return {
            "command": self.command,
            "model": self.model,
            **self.identity,
            "by": self.request.by,
            **self.facts(),
            "rows": [asdict(row) for row in self.rows],
            "out_of_reach": [asdict(missed) for missed in self.missed],
            "notes": list(self.notes),
        }

    def left_out(self) -> list[str]:
        """What is not in the table, as the last of the remarks."""
        return [
            *(f"{m.label} cannot spend {m.budget:.3g}: the nearest is {m.closest:.3g}." for m in self.missed),
            *self.notes,
        ]


@dataclass(frozen=True)
class Row:
    """An entry's result.

    Attributes:
        label, budget, method: of the entry; ``method`` as plain data.
        questions: which were counted: ``all``, or ``with evidence`` (anti-oracle).
        accuracy: macro-average over tasks.
        retention: over the stock model's on the same questions; None: the stock model answered none.
        paired: against the stock model on the same questions.
        group_a: accuracy where Downsample at this budget fails and the stock model does not (VTC-Bench); ``group_b``: where
            Downsample succeeds. None: there is no such run, or no such question.
        spent: what it cost.
        chance: guessing at random, and guessing the most frequent answer, on the same questions.
        tasks: accuracy of each task.
        seeds: macro-average of each seed.
    """

    label: str
    budget: float | None
    method: dict[str, Any] | None
    questions: str
    accuracy: Share
    retention: Share | None
    paired: Paired
    group_a: Share | None
    group_b: Share | None
    spent: Spent
    chance: tuple[float, float]
    tasks: dict[str, Share]
    seeds: dict[int, float]


Key = tuple[int, str]
"""Seed and id: ids are unique within a seed only."""


def rows(
    entries: Sequence[Entry], questions: Mapping[Key, Question], answers: Mapping[Entry, Mapping[Key, Record]]
) -> list[Row]:
    """Results in the order of the entries; the first one is the stock model."""
    dense = answers[entries[0]]
    downsampled = {
        entry.budget: answers[entry]
        for entry in entries
        if entry.method is not None and entry.method.name() == "downsample"
    }
    found = []
    for entry in entries:
        row = _row(entry, questions, answers[entry], dense)
        if row is not None and entry.budget in downsampled and entry.budget is not None:
            row = _grouped(row, answers[entry], dense, downsampled[entry.budget])
        if row is not None:
            found.append(row)
    return found


def _row(
    entry: Entry, questions: Mapping[Key, Question], mine: Mapping[Key, Record], dense: Mapping[Key, Record]
) -> Row | None:
    """None: there is no question that could be counted."""
    needs_evidence = entry.method is not None and entry.method.name() == "antioracle"
    keys = [key for key, question in questions.items() if question.has_evidence or not needs_evidence]
    if not keys:
        return None
    asked = [questions[key] for key in keys]
    tasks = [question.task for question in asked]
    right, stock = (np.array([source[key].right for key in keys], bool) for source in (mine, dense))
    of_seed = np.array([seed for seed, _ in keys])
    seeds = {}
    for seed in dict.fromkeys(seed for seed, _ in keys):
        chosen = np.flatnonzero(of_seed == seed)
        seeds[seed] = statistics.mean([tasks[i] for i in chosen], right[chosen])
    return Row(
        label=entry.label,
        budget=entry.budget,
        method=None if entry.method is None else entry.method.to_dict(),
        questions="with evidence" if needs_evidence else "all",
        accuracy=statistics.macro(tasks, right),
        retention=statistics.retention(tasks, right, stock),
        paired=statistics.mcnemar(right, stock),
        group_a=None,
        group_b=None,
        spent=_spent([mine[key] for key in keys]),
        chance=statistics.chance(tasks, [q.truth for q in asked], [q.choices for q in asked]),
        tasks=statistics.by_task(tasks, right),
        seeds=seeds,
    )


def _grouped(row: Row, mine: Mapping[Key, Record], dense: Mapping[Key, Record], small: Mapping[Key, Record]) -> Row:
    hard = [mine[key].right for key in mine if dense[key].right and not small[key].right]
    easy = [mine[key].right for key in mine if small[key].right]
    return replace(row, group_a=_share(hard), group_b=_share(easy))


def _share(right: Sequence[bool]) -> Share | None:
    return statistics.wilson(sum(right), len(right)) if right else None


def _spent(records: Sequence[Record]) -> Spent:
    costs = [record.cost for record in records if record.cost is not None]
    return Spent.of(Cost.total((cost, 1) for cost in costs)) if costs else Spent(1.0, 1.0, 1.0)
