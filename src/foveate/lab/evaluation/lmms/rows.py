"""From scores to the lines of the report: retention, Group-A and significance, per task and over all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.lab.evaluation import statistics
from foveate.lab.evaluation.lmms.scores import Finished, Scored
from foveate.lab.evaluation.plan import Entry
from foveate.lab.evaluation.results import Spent
from foveate.lab.evaluation.statistics import Paired, Share
from foveate.lab.terminal import CommandError
from foveate.methods.downsample import Downsample

RIGHT = 0.5
"""A graded answer counts as right from here on, where something must be right or wrong (Group-A)."""

Floats = NDArray[np.float64]
Key = tuple[str, str]
"""Task, and number of the question."""


@dataclass(frozen=True)
class TaskRow:
    """An entry on one task.

    Attributes:
        accuracy: mean score of its questions.
        retention: over the stock model's, on the same questions.
        paired: against the stock model.
        group_a: share of right answers where the stock model is right and Downsample at this budget is not.
        official: lmms-eval's own numbers.
    """

    accuracy: Share
    retention: Share | None
    paired: Paired
    group_a: Share | None
    official: dict[str, float]


@dataclass(frozen=True)
class PublicRow:
    """A line of the report.

    Attributes:
        label, budget, method: of the entry; ``method`` as plain data.
        accuracy: mean over tasks of their mean scores.
        retention, paired: over the stock model's, and against it, on the same questions.
        group_a: as of a task, all questions together; ``group_b``: where Downsample at this budget is right.
        spent: what it cost.
        tasks: in the order in which they were asked for.
    """

    label: str
    budget: float | None
    method: dict[str, Any] | None
    accuracy: Share
    retention: Share | None
    paired: Paired
    group_a: Share | None
    group_b: Share | None
    spent: Spent
    tasks: dict[str, TaskRow]


def rows(entries: Sequence[Entry], found: Mapping[Entry, Sequence[Finished]]) -> tuple[list[PublicRow], list[str]]:
    """Results in the order of the entries, the stock model first; and what could not be compared.

    Args:
        entries: what was run.
        found: for each what it made of the names that were asked for, in one order.
    """
    tasks = {entry: {name: s for each in found[entry] for name, s in each.tasks.items()} for entry in entries}
    dense = tasks[entries[0]]
    without = {name: [entry for entry in entries if not tasks[entry][name].scores] for name in dense}
    compared = [name for name in dense if not without[name]]
    notes = [_left_out(name, whose) for name, whose in without.items() if whose]
    if not compared:
        raise CommandError(f"no task can be compared: {' '.join(notes)}")
    keys = [(name, question) for name in compared for question in dense[name].scores]
    values = {entry: _values(tasks[entry], keys) for entry in entries}
    graded = [name for name in compared if not _within(values.values(), keys, name)]
    notes += [f"{name}: its scores are not between 0 and 1, so it counts in the second table only." for name in graded]
    small = {entry.budget: values[entry] for entry in entries if isinstance(entry.method, Downsample)}
    of_task = np.array([name for name, _ in keys])
    fair = ~np.isin(of_task, graded)
    counted = fair if fair.any() else ~fair
    all_tasks = of_task[counted].tolist()
    stock, made = values[entries[0]], []
    for entry in entries:
        mine, control = values[entry], None if entry.method is None else small.get(entry.budget)
        by_task = {}
        for name in compared:
            here = of_task == name
            one = [name] * int(here.sum())
            by_task[name] = TaskRow(
                statistics.macro(one, mine[here]),
                statistics.retention(one, mine[here], stock[here]),
                statistics.mcnemar(mine[here], stock[here]),
                None if control is None else _hard(mine, stock, control, here & fair),
                tasks[entry][name].official,
            )
        made.append(
            PublicRow(
                entry.label,
                entry.budget,
                None if entry.method is None else entry.method.to_dict(),
                statistics.macro(all_tasks, mine[counted]),
                statistics.retention(all_tasks, mine[counted], stock[counted]),
                statistics.mcnemar(mine[counted], stock[counted]),
                None if control is None else _hard(mine, stock, control, fair),
                None if control is None else _right(mine[fair & (control >= RIGHT)]),
                _spent(found[entry]),
                by_task,
            )
        )
    return made, notes


def _left_out(name: str, whose: Sequence[Entry]) -> str:
    """Why a task is not compared."""
    if whose[0].method is None:
        return f"{name} is not in the table: lmms-eval gives its answers no score one by one."
    return f"{name} is not in the table: lmms-eval gives some answers of {', '.join(map(str, whose))} no score."


def _values(tasks: Mapping[str, Scored], keys: Sequence[Key]) -> Floats:
    return np.array([tasks[name].scores[question] for name, question in keys], np.float64)


def _within(values: Iterable[Floats], keys: Sequence[Key], name: str) -> bool:
    here = np.array([task == name for task, _ in keys])
    return all(bool(((each[here] >= 0) & (each[here] <= 1)).all()) for each in values)


def _hard(mine: Floats, stock: Floats, small: Floats, here: NDArray[np.bool_]) -> Share | None:
    return _right(mine[here & (stock >= RIGHT) & (small < RIGHT)])


def _right(mine: Floats) -> Share | None:
    return statistics.wilson(int((mine >= RIGHT).sum()), len(mine)) if len(mine) else None


def _spent(found: Sequence[Finished]) -> Spent:
    """Mean over what was asked for, each by its totals."""
    spent = [Spent.of(each.cost) for each in found if each.cost is not None]
    return Spent(*(fmean(column) for column in zip(*map(astuple, spent)))) if spent else Spent(1.0, 1.0, 1.0)
