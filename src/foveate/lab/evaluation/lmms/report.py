"""The comparison on public benchmarks as JSON, as Markdown, as a picture and on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from foveate.lab.evaluation import written
from foveate.lab.evaluation.curve import can_draw, draw
from foveate.lab.evaluation.lmms.plan import Request
from foveate.lab.evaluation.lmms.rows import RIGHT, PublicRow, TaskRow
from foveate.lab.evaluation.lmms.run import Public
from foveate.lab.evaluation.report import COLUMNS, cells, ordered, p_value
from foveate.lab.evaluation.written import CURVE, JSON, MARKDOWN
from foveate.lab.terminal import aligned, markdown_table

TASK_COLUMNS = ("task", "method", "budget", "score", "95 % CI", "retention", "95 % CI", "p", "Group-A")


def to_dict(found: Public) -> dict[str, Any]:
    """Plain data; the same for a run that was interrupted and one that was not."""
    return {
        "command": command(found.request),
        **found.identity,
        "by": found.request.by,
        "questions": {name: row.accuracy.n for name, row in found.rows[0].tasks.items()},
        "rows": [asdict(row) for row in found.rows],
        "out_of_reach": [asdict(missed) for missed in found.plan.missed],
        "notes": list(found.notes),
    }


def write(found: Public) -> list[Path]:
    """JSON, Markdown and, with matplotlib, the curve into the folder of the run."""
    curve = partial(draw, found.rows, title=f"{found.request.model}: {', '.join(found.rows[0].tasks)}")
    picture = {CURVE: curve} if can_draw() else {}
    return written.write(found.request.out, {JSON: to_dict(found), MARKDOWN: markdown(found), **picture})


def command(request: Request) -> str:
    """The command line that repeats the run, but for its folder."""
    words = ["foveate", "eval", "--model", request.model, "--tasks", ",".join(request.tasks)]
    for name, values in (
        ("method", request.methods),
        ("option", request.options),
        ("method-json", request.described),
        ("budget", request.budgets),
    ):
        words += [word for value in values for word in (f"--{name}", str(value))]
    for name, value, usual in (
        ("adapter", request.adapter, None),
        ("by", request.by, None),
        ("positions", request.positions, None),
        ("limit", request.limit, None),
        ("batch-size", request.batch_size, 1),
        ("include-path", request.include, None),
        ("dtype", request.dtype, "auto"),
        ("device", request.device, "auto"),
        ("attn", request.attn, None),
    ):
        words += [] if value == usual else [f"--{name}", str(value)]
    return shlex.join(words)


def markdown(found: Public) -> str:
    """Three tables: methods with costs, each task, and lmms-eval's own numbers."""
    columns, table = _main(found)
    lines = [f"# {found.request.model}: public benchmarks", "", f"    {command(found.request)}", "", summary(found), ""]
    lines += markdown_table(columns, table)
    lines += ["", *(f"* {line}" for line in remarks(found)), "", "## By task", ""]
    lines += markdown_table(TASK_COLUMNS, _by_task(found.rows))
    lines += ["", "## lmms-eval's own numbers", "", "In brackets: over the stock model's.", ""]
    lines += markdown_table(*_official(found.rows))
    return "\n".join(lines) + "\n"


def show(found: Public, written: Sequence[Path], console: Console) -> None:
    """The first two tables, for a person."""
    columns, table = _main(found)
    console.print(escape(summary(found)), soft_wrap=True)
    for rows in ([columns, *table], [TASK_COLUMNS, *_by_task(found.rows)]):
        console.print()
        for line in aligned(rows):
            console.print(escape(line), soft_wrap=True)
    console.print()
    for line in remarks(found):
        console.print(escape(line), style="dim", soft_wrap=True)
    console.print("\nwritten: " + ", ".join(escape(str(path)) for path in written), soft_wrap=True)


def summary(found: Public) -> str:
    """What was asked."""
    tasks = found.rows[0].tasks
    numbers = ", ".join(f"{name} ({row.accuracy.n})" for name, row in tasks.items())
    part = "" if found.request.limit is None else f"; the first {found.request.limit} questions of each"
    return (
        f"{sum(row.accuracy.n for row in tasks.values())} questions of {numbers}{part}, asked and scored by lmms-eval."
    )


def remarks(found: Public) -> list[str]:
    """What a reader must know to read the table, and what is not in it."""
    by = "visual tokens per decoder layer" if found.request.by == "tokens" else "FLOPs of a prompt and one token"
    asked = "asked for" if found.request.budgets else "measured on the first questions"
    lines = [
        f"Budget, {asked}: {by}, over those of the stock model (tokens, FLOPs and KV: what was really spent).",
        "Accuracy: mean over tasks of the mean score of their questions; retention: over the stock model's, the same questions "
        "drawn for both. 95 % intervals by bootstrap.",
        "p: exact sign test against the stock model on the same questions (McNemar's, where answers are right or wrong), not "
        "corrected for the number of lines.",
        "Group-A: share of right answers where the stock model is right and Downsample at this budget is wrong (right: a score "
        f"of {RIGHT:g} or more).",
    ]
    lines += [f"{m.label} cannot spend {m.budget:.3g}: the nearest is {m.closest:.3g}." for m in found.plan.missed]
    return [*lines, *found.notes]


def _main(found: Public) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    return COLUMNS[:-1], [cells(row) for row in ordered(found.rows)]


def _by_task(rows: Sequence[PublicRow]) -> list[tuple[str, ...]]:
    return [_task_cells(name, row, row.tasks[name]) for name in rows[0].tasks for row in ordered(rows)]


def _task_cells(task: str, row: PublicRow, here: TaskRow) -> tuple[str, ...]:
    budget = "-" if row.budget is None else f"{row.budget:.3g}"
    score = (f"{100 * here.accuracy.value:.1f}", f"{100 * here.accuracy.low:.1f}-{100 * here.accuracy.high:.1f}")
    kept, interval = "-", "-"
    if here.retention is not None:
        kept = f"{here.retention.value:.1%}"
        interval = f"{100 * here.retention.low:.1f}-{100 * here.retention.high:.1f}"
    group = "-" if here.group_a is None else f"{here.group_a.value:.1%} of {here.group_a.n}"
    return task, row.label, budget, *score, kept, interval, p_value(here.paired.p), group


def _official(rows: Sequence[PublicRow]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A line for each metric, a column for each entry."""
    shown = ordered(rows)
    columns = ("metric", *(row.label if row.budget is None else f"{row.label} at {row.budget:.3g}" for row in shown))
    lines = []
    for task, first in rows[0].tasks.items():
        for metric, dense in first.official.items():
            values = [row.tasks[task].official.get(metric) for row in shown]
            lines.append((f"{task}: {metric}", *(_value(value, dense) for value in values)))
    return columns, lines


def _value(value: float | None, dense: float) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" ({value / dense:.1%})" if dense else "")
