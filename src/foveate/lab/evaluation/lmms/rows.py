"""From scores to the lines of the report: retention, Group-A and significance, per task and over all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean

import numpy as np

from foveate.lab.evaluation.lmms.scores import Finished, Scored
from foveate.lab.evaluation.plan import Entry
from foveate.lab.evaluation.results import Compared, Judged, Spent, compared, control, easy, hard, of_entry
from foveate.lab.evaluation.statistics import Bools, Floats, Share
from foveate.lab.terminal import CommandError

Key = tuple[str, str]
"""Task, and number of the question."""


@dataclass(frozen=True)
class TaskRow(Compared):
    """An entry on one task.

    Attributes:
        official: lmms-eval's own numbers.
    """

    official: dict[str, float]


@dataclass(frozen=True)
class PublicRow(Judged):
    """A line of the report.

    Attributes:
        tasks: in the order in which they were asked for.
    """

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
    compared_tasks = [name for name in dense if not without[name]]
    notes = [_left_out(name, whose) for name, whose in without.items() if whose]
    if not compared_tasks:
        raise CommandError(f"no task can be compared: {' '.join(notes)}")
    keys = [(name, question) for name in compared_tasks for question in dense[name].scores]
    values = {entry: _values(tasks[entry], keys) for entry in entries}
    of_task = np.array([name for name, _ in keys])
    graded = [name for name in compared_tasks if not _within(values.values(), of_task == name)]
    notes += [f"{name}: its scores are not between 0 and 1, so it counts in the second table only." for name in graded]
    fair = ~np.isin(of_task, graded)
    counted = fair if fair.any() else ~fair
    stock, made = values[entries[0]], []
    for entry in entries:
        mine, downsample = values[entry], control(entry, entries)
        small = None if downsample is None else values[downsample]
        by_task = {}
        for name in compared_tasks:
            here = of_task == name
            by_task[name] = TaskRow(
                **compared([name] * int(here.sum()), mine[here], stock[here]),
                group_a=_on(here & fair, hard, mine, stock, small),
                official=tasks[entry][name].official,
            )
        row = PublicRow(
            **of_entry(entry),
            **compared(of_task[counted].tolist(), mine[counted], stock[counted]),
            group_a=_on(fair, hard, mine, stock, small),
            group_b=_on(fair, easy, mine, small),
            spent=_spent(found[entry]),
            tasks=by_task,
        )
        made.append(row)
    return made, notes


def _on(here: Bools, group: Callable[..., Share | None], *answers: Floats | None) -> Share | None:
    """A group among some of the questions."""
    return group(*(None if each is None else each[here] for each in answers))


def _left_out(name: str, whose: Sequence[Entry]) -> str:
    """Why a task is not compared."""
    if whose[0].method is None:
        return f"{name} is not in the table: lmms-eval gives its answers no score one by one."
    return f"{name} is not in the table: lmms-eval gives some answers of {', '.join(map(str, whose))} no score."


def _values(tasks: Mapping[str, Scored], keys: Sequence[Key]) -> Floats:
    return np.array([tasks[name].scores[question] for name, question in keys], np.float64)


def _within(values: Iterable[Floats], here: Bools) -> bool:
    return all(bool(((each[here] >= 0) & (each[here] <= 1)).all()) for each in values)


def _spent(found: Sequence[Finished]) -> Spent:
    """Mean over what was asked for, each by its totals."""
    spent = [Spent.of(each.cost) for each in found if each.cost is not None]
    return Spent(*(fmean(column) for column in zip(*map(astuple, spent)))) if spent else Spent(1.0, 1.0, 1.0)
