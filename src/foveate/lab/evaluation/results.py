"""From answers to numbers: a line of the report for every entry, whatever the questions were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from foveate.lab import typed
from foveate.lab.asker import Cost
from foveate.lab.evaluation import statistics
from foveate.lab.evaluation.plan import Entry, Missed
from foveate.lab.evaluation.questions import Prompt
from foveate.lab.evaluation.request import Contest
from foveate.lab.evaluation.statistics import Floats, Paired, Share
from foveate.lab.evaluation.store import Record
from foveate.methods.downsample import Downsample

RIGHT = 0.5
"""A graded answer counts as right from here on, where something must be right or wrong (Group-A)."""


@dataclass(frozen=True)
class Question:
    """What must be known of a question to judge its answer: no images."""

    task: str
    truth: str
    choices: int
    has_evidence: bool

    @classmethod
    def of(cls, prompt: Prompt) -> Question:
        sample = prompt.sample
        assert sample is not None
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

    @classmethod
    def over(cls, costs: Iterable[Cost | None]) -> Spent:
        """Of several questions together; None are those of the stock model."""
        known = [cost for cost in costs if cost is not None]
        return cls.of(Cost.total((cost, 1) for cost in known)) if known else cls(1.0, 1.0, 1.0)


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


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Accuracy, and what it is against the stock model's on the same questions.

    Attributes:
        accuracy: macro-average over tasks.
        difference: accuracy minus the stock model's, the same questions drawn for both; None: of an older result.
        retention: over the stock model's; None: that answered none.
        paired: against the stock model.
        group_a: accuracy where Downsample at this budget fails and the stock model does not (VTC-Bench). None: there is no such
            run, or no such question.
    """

    accuracy: Share
    retention: Share | None
    paired: Paired
    group_a: Share | None
    difference: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Judged(Compared):
    """An entry's result.

    Attributes:
        label, budget, method: of the entry; ``method`` as plain data.
        group_b: accuracy where Downsample at this budget succeeds.
        spent: what it cost.
    """

    label: str
    budget: float | None
    method: dict[str, Any] | None
    group_b: Share | None
    spent: Spent


@dataclass(frozen=True, kw_only=True)
class Row(Judged):
    """An entry's result on the reference benchmark.

    Attributes:
        questions: which were counted: ``all``, or ``with evidence`` (anti-oracle).
        chance: guessing at random, and guessing the most frequent answer, on the same questions.
        tasks: accuracy of each task.
        seeds: macro-average of each seed.
    """

    questions: str
    chance: tuple[float, float]
    tasks: dict[str, Share]
    seeds: dict[int, float]


Key = tuple[int, str]
"""Seed and id: ids are unique within a seed only."""


def compared(tasks: Sequence[str], mine: Floats, stock: Floats) -> dict[str, Any]:
    """Of answers to the same questions, 1 right and 0 wrong, or graded."""
    return {
        "accuracy": statistics.macro(tasks, mine),
        "difference": statistics.difference(tasks, mine, stock),
        "retention": statistics.retention(tasks, mine, stock),
        "paired": statistics.mcnemar(mine, stock),
    }


def hard(mine: Floats, stock: Floats, small: Floats | None) -> Share | None:
    """Right answers where the stock model is right and Downsample is wrong."""
    return None if small is None else _right(mine[(stock >= RIGHT) & (small < RIGHT)])


def easy(mine: Floats, small: Floats | None) -> Share | None:
    """Right answers where Downsample is right."""
    return None if small is None else _right(mine[small >= RIGHT])


def of_entry(entry: Entry) -> dict[str, Any]:
    """What a line says of its entry."""
    method = None if entry.method is None else entry.method.to_dict()
    return {"label": entry.label, "budget": entry.budget, "method": method}


def control(entry: Entry, entries: Iterable[Entry]) -> Entry | None:
    """Downsample at the budget of an entry, if that has one."""
    there = (each for each in entries if isinstance(each.method, Downsample) and each.budget == entry.budget)
    return None if entry.method is None or entry.budget is None else next(there, None)


def rows(
    entries: Sequence[Entry], questions: Mapping[Key, Question], answers: Mapping[Entry, Mapping[Key, Record]]
) -> list[Row]:
    """Results in the order of the entries, the stock model first; without those that have no question to be counted by."""
    found = []
    for entry in entries:
        keys = counted(entry, questions)
        if not keys:
            continue
        asked = [questions[key] for key in keys]
        tasks = [question.task for question in asked]
        mine, stock = (right_or_wrong(answers[each], keys) for each in (entry, entries[0]))
        downsample = control(entry, entries)
        small = None if downsample is None else right_or_wrong(answers[downsample], keys)
        row = Row(
            **of_entry(entry),
            **compared(tasks, mine, stock),
            group_a=hard(mine, stock, small),
            group_b=easy(mine, small),
            spent=Spent.over(answers[entry][key].cost for key in keys),
            questions="with evidence" if _needs_evidence(entry) else "all",
            chance=statistics.chance(tasks, [q.truth for q in asked], [q.choices for q in asked]),
            tasks=statistics.by_task(tasks, mine > 0),
            seeds=_by_seed([seed for seed, _ in keys], tasks, mine),
        )
        found.append(row)
    return found


def counted(entry: Entry, questions: Mapping[Key, Question]) -> list[Key]:
    """The questions that say something about an entry: where nothing is asked about, an anti-oracle drops nothing."""
    return [key for key, question in questions.items() if question.has_evidence or not _needs_evidence(entry)]


def right_or_wrong(answers: Mapping[Key, Record], keys: Sequence[Key]) -> Floats:
    """1 where an answer is right, and 0 elsewhere."""
    return np.array([answers[key].right for key in keys], np.float64)


def _needs_evidence(entry: Entry) -> bool:
    return entry.method is not None and entry.method.name() == "antioracle"


def _by_seed(of: Sequence[int], tasks: Sequence[str], right: Floats) -> dict[int, float]:
    here = {seed: np.flatnonzero(np.array(of) == seed) for seed in dict.fromkeys(of)}
    return {seed: statistics.mean([tasks[int(i)] for i in chosen], right[chosen]) for seed, chosen in here.items()}


def _right(mine: Floats) -> Share | None:
    return statistics.wilson(int((mine >= RIGHT).sum()), len(mine)) if len(mine) else None
