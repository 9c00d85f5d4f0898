"""The comparison on public benchmarks as tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from foveate.lab.checks import COUNTED, DENSE
from foveate.lab.evaluation.curve import can_draw, draw
from foveate.lab.evaluation.lmms.rows import PublicRow, TaskRow
from foveate.lab.evaluation.report import CURVE, Content, Report, Table, percent, short
from foveate.lab.evaluation.request import Tasks
from foveate.lab.evaluation.results import RIGHT, Result
from foveate.lab.evaluation.table import ALONE, COLUMNS, cells, group, interval, ordered, p_value

TASK_COLUMNS = ("task", "method", "budget", "score", "95 % CI", "retention", "95 % CI", "p", "Group-A")


class Public(Result[Tasks, PublicRow]):
    """What came out on public benchmarks; the first row is the stock model's."""

    words: ClassVar[str] = "foveate eval tasks"

    def facts(self) -> dict[str, Any]:
        return {"questions": {name: row.accuracy.n for name, row in self.rows[0].tasks.items()}}

    def files(self) -> Mapping[str, Content]:
        """The curve."""
        curve = partial(draw, self.rows, title=f"{self.model}: {', '.join(self.rows[0].tasks)}")
        return {CURVE: curve} if can_draw() else {}

    def report(self) -> Report:
        """Three tables: methods with costs, each task, and lmms-eval's own numbers."""
        shown, tasks = ordered(self.rows), self.rows[0].tasks
        by_task = [_task_cells(name, row, row.tasks[name]) for name in tasks for row in shown]
        heads = [row.label if row.budget is None else f"{row.label} at {row.budget:.3g}" for row in shown]
        official = [
            (f"{task}: {metric}", *(_value(row.tasks[task].official.get(metric), dense) for row in shown))
            for task, first in tasks.items()
            for metric, dense in first.official.items()
        ]
        tables = (
            Table(COLUMNS, [cells(row) for row in shown]),
            Table(TASK_COLUMNS, by_task, "By task"),
            Table(
                ("metric", *heads),
                official,
                "lmms-eval's own numbers",
                before="In brackets: over the stock model's.",
                shown=False,
            ),
        )
        title = f"{self.model}: public benchmarks"
        return Report(title, self.command, self._summary(), tables, tuple(self._remarks()), drawn=True)

    def _summary(self) -> str:
        sizes = {name: row.accuracy.n for name, row in self.rows[0].tasks.items()}
        numbers = ", ".join(f"{name} ({n})" for name, n in sizes.items())
        part = "" if self.request.per_task is None else f"; the first {self.request.per_task} questions of each"
        return f"{sum(sizes.values())} questions of {numbers}{part}, asked and scored by lmms-eval."

    def _remarks(self) -> list[str]:
        by = "FLOPs of a prompt and one token" if self.request.by == "flops" else COUNTED[self.request.by]
        asked = "asked for" if self.request.budgets else "measured on the first questions"
        lines = [
            f"Budget, {asked}: {by}, over those of the stock model (tokens, FLOPs and KV: what was really spent).",
            "Accuracy: mean over tasks of the mean score of their questions; retention: over the stock model's, the same "
            "questions drawn for both. 95 % intervals by bootstrap.",
            "p: exact sign test against the stock model on the same questions (McNemar's, where answers are right or wrong), "
            "not corrected for the number of lines.",
            "Group-A: share of right answers where the stock model is right and Downsample at this budget is wrong (right: a "
            f"score of {RIGHT:g} or more).",
        ]
        if any(task.accuracy.n == 1 for task in self.rows[0].tasks.values()):
            lines.append(ALONE)
        return [*lines, *self.left_out()]


def _task_cells(task: str, row: PublicRow, here: TaskRow) -> tuple[str, ...]:
    kept = "-" if here.retention is None else percent(here.retention.value)
    within = "-" if here.retention is None or row.label == DENSE else interval(here.retention)
    score = (f"{100 * here.accuracy.value:.1f}", interval(here.accuracy))
    return task, row.label, short(row.budget), *score, kept, within, p_value(here.paired.p), group(here.group_a)


def _value(value: float | None, dense: float) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" ({value / dense:.1%})" if dense else "")
