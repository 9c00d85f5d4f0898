"""The result as JSON, as Markdown and on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from foveate.lab.checks import COUNTED
from foveate.lab.evaluation import written
from foveate.lab.evaluation.fidelity.lines import Line
from foveate.lab.evaluation.fidelity.measuring import Found, Own, Request
from foveate.lab.evaluation.statistics import Share
from foveate.lab.evaluation.written import JSON, MARKDOWN
from foveate.lab.terminal import aligned, markdown_table

COLUMNS = (
    "method",
    "budget",
    "tokens",
    "FLOPs",
    "KV",
    "KL",
    "95 % CI",
    "first KL",
    "top-1",
    "first top-1",
    "same answer",
)
FEW = 20  # prompts


def to_dict(found: Found) -> dict[str, Any]:
    """Plain data; the same for a run that was interrupted and one that was not."""
    return {
        "command": command(found.request),
        "model": found.model,
        **found.identity,
        "by": None if found.request.as_is else found.request.by,
        "count": found.prompts,
        "answer_tokens": found.length,
        "rows": [asdict(line) for line in found.lines],
        "out_of_reach": [asdict(missed) for missed in found.missed],
        "notes": list(found.notes),
    }


def write(found: Found) -> list[Path]:
    """JSON and Markdown into the folder of the run."""
    return written.write(found.request.out, {JSON: to_dict(found), MARKDOWN: markdown(found)})


def command(request: Request) -> str:
    """The command line that repeats the run, but for its folder."""
    return " ".join(["foveate eval --fidelity", shlex.join(source(request) + contenders(request))])


def source(request: Request) -> list[str]:
    """The words of a command that say the model and what it is asked."""
    words = ["--reference", request.reference] if request.model is None else ["--model", request.model]
    words += ["--adapter", request.adapter] if request.adapter else []
    words += own_words(request.own)
    words += [
        word
        for name, values in (("task", request.tasks), ("seed", request.seeds))
        for value in values
        for word in (f"--{name}", str(value))
    ]
    if request.own.data is None and not request.own.images:
        words += ["--per-task", str(request.per_task), "--split", request.split]
    return words


def own_words(own: Own) -> list[str]:
    """The words that say `Own`; what is usual needs none."""
    words: list[str] = []
    for name, value in (
        ("data", own.data),
        ("samples", own.samples),
        ("new-tokens", own.new_tokens),
        ("batch-size", own.batch if own.batch != Own().batch else None),
        ("dtype", own.dtype if own.dtype != Own().dtype else None),
        ("attn", own.attn),
    ):
        words += [] if value is None else [f"--{name}", str(value)]
    for image in own.images:
        words += ["--image", str(image)]
    for prompt in own.prompts:
        words += ["--prompt", prompt]
    return words


def contenders(request: Request) -> list[str]:
    """The words that say what is measured."""
    words: list[str] = []
    for name, values in (
        ("method", request.methods),
        ("option", request.options),
        ("method-json", request.described),
        ("budget", request.budgets),
    ):
        words += [word for value in values for word in (f"--{name}", str(value))]
    words += ["--positions", request.positions] if request.positions else []
    return [*words, "--as-is"] if request.as_is else [*words, "--by", request.by]


def markdown(found: Found) -> str:
    lines = [f"# {found.model}: fidelity", "", f"    {command(found.request)}", "", summary(found), ""]
    lines += markdown_table(COLUMNS, [cells(line) for line in ordered(found.lines)])
    lines += ["", *(f"* {line}" for line in remarks(found))]
    return "\n".join(lines) + "\n"


def show(found: Found, written: Sequence[Path], console: Console) -> None:
    """The table, for a person."""
    console.print(escape(summary(found)), soft_wrap=True)
    console.print()
    for line in aligned([COLUMNS, *(cells(line) for line in ordered(found.lines))]):
        console.print(escape(line), soft_wrap=True)
    console.print()
    for remark in remarks(found):
        console.print(escape(remark), style="dim", soft_wrap=True)
    console.print("\nwritten: " + ", ".join(escape(str(path)) for path in written), soft_wrap=True)


def ordered(lines: Sequence[Line]) -> list[Line]:
    """From the largest budget to the smallest, what stays nearest to the stock model first."""
    return sorted(lines, key=lambda line: (line.budget is not None, -(line.budget or 0), line.kl.value))


def cells(line: Line) -> tuple[str, ...]:
    """Of the table."""
    return (
        line.label,
        "-" if line.budget is None else f"{line.budget:.3g}",
        *(f"{value:.1%}" for value in (line.spent.tokens, line.spent.flops, line.spent.kv)),
        nats(line.kl.value),
        interval(line.kl),
        nats(line.first_kl.value),
        *(f"{share.value:.1%}" for share in (line.top1, line.first_top1, line.same)),
    )


def nats(value: float) -> str:
    """Three digits, from a millionth on."""
    return "0" if abs(value) < 1e-6 else f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def interval(share: Share) -> str:
    return f"{nats(share.low)} to {nats(share.high)}"


def summary(found: Found) -> str:
    answers = f"answers of {found.length:.1f} tokens on average, at most {found.request.own.new_tokens}"
    return f"{found.prompts} prompts, without labels; {answers if found.lines else 'nothing could be measured'}."


def remarks(found: Found) -> list[str]:
    """What a reader must know to read the table, and what is not in it."""
    request = found.request
    lines = [
        "KL: KL(stock || method) of the next token in nats, the mean over the positions of the stock model's greedy answer, "
        "which both are made to say; over prompts the mean with a 95 % bootstrap interval. First: of the answer's first token.",
        "Top-1: both find the same token likeliest. Same answer: greedy answers that are the stock model's, token by token.",
        "tokens, FLOPs, KV: prompt and answer, over those of the stock model"
        + (", every method as its options say." if request.as_is else f". Budget: {COUNTED[request.by]}."),
        "Near the stock model is not right: where it errs, so does what is faithful to it.",
    ]
    if found.prompts < FEW:
        lines.append(f"{found.prompts} prompts say little: below {FEW}, intervals are too narrow; give more.")
    lines += [f"{m.label} cannot spend {m.budget:.3g}: the nearest is {m.closest:.3g}." for m in found.missed]
    return [*lines, *found.notes]
