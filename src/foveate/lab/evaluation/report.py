"""The result as JSON, as Markdown and on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from foveate.lab.checks import COUNTED
from foveate.lab.evaluation import written
from foveate.lab.evaluation.curve import can_draw, draw
from foveate.lab.evaluation.protocol import Evaluation, Request
from foveate.lab.evaluation.results import Line, Row
from foveate.lab.evaluation.statistics import Share
from foveate.lab.evaluation.written import CURVE, JSON, MARKDOWN
from foveate.lab.terminal import aligned, markdown_table

L = TypeVar("L", bound=Line)

FEW = 5  # questions of a task
COLUMNS = ("method", "budget", "accuracy", "95 % CI", "retention", "p", "Group-A", "tokens", "FLOPs", "KV", "seeds")


def to_dict(found: Evaluation) -> dict[str, Any]:
    """Plain data; the same for a run that was interrupted and one that was not."""
    return {
        "command": command(found.request),
        "model": found.model,
        **found.identity,
        "seeds": list(found.request.seeds),
        "by": found.request.by,
        "questions": found.rows[0].accuracy.n,
        "rows": [asdict(row) for row in found.rows],
        "out_of_reach": [asdict(missed) for missed in found.missed],
        "notes": list(found.notes),
    }


def write(found: Evaluation) -> list[Path]:
    """JSON, Markdown and, with matplotlib, the curve into the folder of the run."""
    dense = found.rows[0]
    title = f"{found.model}: {dense.accuracy.n} questions"
    curve = partial(draw, found.rows, title=title, guess=dense.chance[1])
    picture = {CURVE: curve} if can_draw() else {}
    return written.write(found.request.out, {JSON: to_dict(found), MARKDOWN: markdown(found), **picture})


def command(request: Request) -> str:
    """The command line that repeats the run, but for its folder."""
    words = ["foveate", "eval"]
    words += ["--reference", request.reference] if request.model is None else ["--model", request.model]
    words += ["--adapter", request.adapter] if request.adapter else []
    for name, values in (
        ("method", request.methods),
        ("option", request.options),
        ("method-json", request.described),
        ("budget", request.budgets),
        ("task", request.tasks),
        ("seed", request.seeds),
    ):
        words += [word for value in values for word in (f"--{name}", str(value))]
    words += ["--as-is"] if request.as_is else ["--by", request.by]
    words += ["--positions", request.positions] if request.positions else []
    words += ["--per-task", str(request.per_task), "--split", request.split]
    return shlex.join(words)


def markdown(found: Evaluation) -> str:
    """Two tables: methods with costs, and methods by task."""
    from foveate_reference import STANDS_FOR

    lines = [f"# {found.model}: accuracy and cost", "", f"    {command(found.request)}", "", summary(found), ""]
    lines += markdown_table(columns(found), [_cells(row) for row in ordered(found.rows)])
    lines += ["", *(f"* {line}" for line in remarks(found)), "", "## By task", ""]
    tasks = list(found.rows[0].tasks)
    lines += markdown_table(("method", "budget", *tasks), [_task_cells(row, tasks) for row in ordered(found.rows)])
    lines += [
        "",
        "Accuracy in %. What each task stands for: " + "; ".join(f"{t}: {STANDS_FOR[t]}" for t in tasks) + ".",
    ]
    return "\n".join(lines) + "\n"


def show(found: Evaluation, written: Sequence[Path], console: Console) -> None:
    """The first table, for a person."""
    console.print(escape(summary(found)), soft_wrap=True)
    console.print()
    for line in aligned([columns(found), *(_cells(row) for row in ordered(found.rows))]):
        console.print(escape(line), soft_wrap=True)  # a table of rich would be cut where there is no terminal
    console.print()
    for line in remarks(found):
        console.print(escape(line), style="dim", soft_wrap=True)
    console.print("\nwritten: " + ", ".join(escape(str(path)) for path in written), soft_wrap=True)


def ordered(rows: Sequence[L]) -> list[L]:
    """What has no budget as it came, then from the largest budget to the smallest, the best first."""
    return sorted(
        rows, key=lambda row: (row.budget is not None, -(row.budget or 0), -row.accuracy.value if row.budget else 0)
    )


def columns(found: Evaluation) -> tuple[str, ...]:
    """Those of the first table; a single seed has no column of its own."""
    return COLUMNS if len(found.request.seeds) > 1 else COLUMNS[:-1]


def summary(found: Evaluation) -> str:
    dense = found.rows[0]
    return (
        f"{dense.accuracy.n} questions, {len(dense.tasks)} tasks, seeds {', '.join(map(str, found.request.seeds))} of the "
        f"{found.request.split} split. Guessing at random: {dense.chance[0]:.1%}; always the most frequent answer: "
        f"{dense.chance[1]:.1%}."
    )


def remarks(found: Evaluation) -> list[str]:
    """What a reader must know to read the table, and what is not in it."""
    lines = [
        "No budget: every method as its options say (tokens, FLOPs and KV: over those of the stock model)."
        if found.request.as_is
        else f"Budget: {COUNTED[found.request.by]}, over those of the stock model (tokens, FLOPs and KV: what was really "
        "spent).",
        "Accuracy: mean over tasks; 95 % intervals by bootstrap, stratified by task. Retention: over the stock model's, "
        "the same questions drawn for both.",
        "p: exact McNemar test against the stock model on the same questions, not corrected for the number of lines.",
    ]
    if any(row.method is not None and row.method["method"] == "downsample" for row in found.rows):
        lines.append("Group-A: questions that the stock model gets right and Downsample at this budget gets wrong.")
    else:
        lines.append("Group-A needs Downsample at the same budget: add --method downsample.")
    for row in found.rows:
        if row.questions != "all":
            lines.append(
                f"{row.label}: the {row.accuracy.n} questions {row.questions} only; guessing the most frequent answer gets "
                f"{row.chance[1]:.1%} of those."
            )
    if len(found.request.seeds) > 1:
        lines.append("Seeds are pooled; the last column has the lowest and the highest accuracy of a single one.")
    few = [share.n for share in found.rows[0].tasks.values()]
    if few and min(few) < FEW:
        lines.append(
            f"{min(few)} questions of a task say little: below {FEW}, intervals are too narrow and the most frequent answer "
            "guesses too well; raise --per-task."
        )
    lines += [f"{m.label} cannot spend {m.budget:.3g}: the nearest is {m.closest:.3g}." for m in found.missed]
    return [*lines, *found.notes]


def cells(row: Line) -> tuple[str, ...]:
    """Of the first table, but for the seeds."""
    interval = f"{100 * row.accuracy.low:.1f}-{100 * row.accuracy.high:.1f}"
    costs = (f"{value:.1%}" for value in (row.spent.tokens, row.spent.flops, row.spent.kv))
    kept = "-" if row.retention is None else f"{row.retention.value:.1%}"
    group = "-" if row.group_a is None else f"{row.group_a.value:.1%} of {row.group_a.n}"
    budget = "-" if row.budget is None else f"{row.budget:.3g}"
    return row.label, budget, f"{row.accuracy.value:.1%}", interval, kept, p_value(row.paired.p), group, *costs


def _cells(row: Row) -> tuple[str, ...]:
    accuracies = row.seeds.values()
    seeds = () if len(accuracies) == 1 else (f"{100 * min(accuracies):.1f}-{100 * max(accuracies):.1f}",)
    return *cells(row), *seeds


def _task_cells(row: Row, tasks: Sequence[str]) -> tuple[str, ...]:
    shares: list[Share | None] = [row.tasks.get(task) for task in tasks]
    budget = "-" if row.budget is None else f"{row.budget:.3g}"
    return row.label, budget, *("-" if share is None else f"{100 * share.value:.0f}" for share in shares)


def p_value(value: float) -> str:
    """Three digits."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
