"""The method as JSON for ``--method-json``, and the report on a terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from foveate.lab.checks import COUNTED
from foveate.lab.evaluation import written
from foveate.lab.evaluation.fidelity import table
from foveate.lab.evaluation.fidelity.lines import Line
from foveate.lab.evaluation.fidelity.table import FEW, interval, nats
from foveate.lab.evaluation.tune.goal import Request, asking
from foveate.lab.evaluation.tune.tuning import FOUND, Tuned
from foveate.lab.evaluation.written import JSON, MARKDOWN, Content
from foveate.lab.terminal import aligned, markdown_table

METHOD = "method.json"
LOST = "found.json"  # what was found, where what was given is better
COLUMNS = ("setting", "prompts", "tokens", "FLOPs", "KV", "KL", "95 % CI", "first KL", "top-1", "same answer")


def to_dict(found: Tuned) -> dict[str, Any]:
    """Plain data; the same for a run that was interrupted and one that was not."""
    return {
        "command": command(found.request),
        "model": found.model,
        **found.identity,
        "search": found.search,
        "trials": found.trials,
        "exhausted": found.exhausted,
        "method": found.method.to_dict(),
        "found": found.found.to_dict(),
        "calibration": [asdict(line) for line in found.calibration],
        "held_out": [asdict(line) for line in found.held_out],
        "gain": None if found.gain is None else asdict(found.gain),
        "verdict": verdict(found),
    }


def write(found: Tuned) -> list[Path]:
    """The method to use, the one that was found where that is another, and the report, into the folder of the run."""
    files: dict[str, Content] = {METHOD: found.method.to_dict(), JSON: to_dict(found), MARKDOWN: markdown(found)}
    if found.lost:
        files[LOST] = found.found.to_dict()
    return written.write(found.request.out, files)


def command(request: Request) -> str:
    """The command line that repeats the run, but for its folder."""
    words = ["foveate", "tune", "--model", request.model, "--method-json", json.dumps(request.method.to_dict())]
    goal = {"max-kl": request.max_kl, "budget": request.budget}
    words += [word for name, value in goal.items() if value is not None for word in (f"--{name}", str(value))]
    words += ["--by", request.by, "--search", request.search, "--trials", str(request.trials)]
    words += ["--held-out", str(request.held_out), "--seed", str(request.seed)]
    own = table.own_words(asking(request).own)
    return shlex.join([*words, *(["--adapter", request.adapter] if request.adapter else []), *own])


def markdown(found: Tuned) -> str:
    lines = [f"# {found.model}: {found.request.method.name()}, tuned", "", f"    {command(found.request)}", ""]
    lines += [summary(found), "", f"    {json.dumps(found.method.to_dict())}", ""]
    lines += markdown_table(COLUMNS, rows(found))
    lines += ["", *(f"* {line}" for line in [*verdict(found), *remarks(found)])]
    return "\n".join(lines) + "\n"


def show(found: Tuned, written: Sequence[Path], console: Console) -> None:
    """For a person."""
    console.print(escape(summary(found)), soft_wrap=True)
    console.print(escape(repr(found.method)), soft_wrap=True, style="bold")
    console.print()
    for line in aligned([COLUMNS, *rows(found)]):
        console.print(escape(line), soft_wrap=True)
    console.print()
    for line in verdict(found):
        console.print(escape(line), soft_wrap=True)
    for line in remarks(found):
        console.print(escape(line), style="dim", soft_wrap=True)
    console.print("\nwritten: " + ", ".join(escape(str(path)) for path in written), soft_wrap=True)


def rows(found: Tuned) -> list[tuple[str, ...]]:
    """Every setting on the prompts of the search, then on those held out."""
    parts = (("searched", found.calibration), ("held out", found.held_out))
    return [_cells(line, part) for part, lines in parts for line in lines]


def summary(found: Tuned) -> str:
    request, counted = found.request, COUNTED[found.request.by]
    wanted = (
        f"the fewest {counted} with a KL of at most {request.max_kl:.3g} nats"
        if request.max_kl is not None
        else f"the least KL for {request.budget:.3g} of the {counted}"
    )
    more = "; there was more to try: raise --trials" if found.exhausted else ""
    return f"Looked for {wanted}: {found.trials} settings judged (search: {found.search}){more}."


def verdict(found: Tuned) -> list[str]:
    """What a user wants to know: does it hold on prompts that the search has not seen, and was it worth the search?"""
    lines, last, most = [], found.held_out[-1], found.request.max_kl
    if most is not None:
        share = _spent(last, found.request.by)
        said = "within" if last.kl.value <= most else "above"
        lines.append(
            f"On prompts held out its KL is {nats(last.kl.value)} ({interval(last.kl)}), {said} the {most:.3g} that was asked "
            f"for; it spends {share:.1%} of the {COUNTED[found.request.by]}."
        )
        if share > 0.99:
            lines.append("That saves nothing: this method cannot be so faithful here.")
    if found.gain is None:
        return lines
    before, gain = found.held_out[-2], found.gain
    if before.method == last.method:
        return [*lines, "Nothing was found that is better than what was given, at this cost."]
    helped = "lower" if gain.low > 0 else f"higher, so keep what was given: {METHOD} does" if found.lost else None
    told = f"KL is {helped}" if helped else "these prompts cannot tell the two apart"
    lines.append(
        f"Against what was given, at this cost, on prompts held out: {told}: {nats(before.kl.value)} before, "
        f"{nats(last.kl.value)} now, {nats(gain.value)} less ({interval(gain)})."
    )
    return lines


def remarks(found: Tuned) -> list[str]:
    """What a reader must know to read the table."""
    lines = [
        "KL: KL(stock || setting) of the next token in nats, the mean over the positions of the stock model's greedy answer; "
        "over prompts the mean with a 95 % bootstrap interval. tokens, FLOPs, KV: over those of the stock model.",
        f"{FOUND!r} was chosen on the prompts of the search, so only those held out tell what it is worth.",
    ]
    few = found.held_out[-1].kl.n
    return [*lines, f"{few} prompts held out say little: give more."] if few < FEW else lines


def _spent(line: Line, by: str) -> float:
    return float(getattr(line.spent, by))


def _cells(line: Line, part: str) -> tuple[str, ...]:
    _, _, *rest, _, _, same = table.cells(line)
    tokens, flops, kv, kl, inside, first = rest
    return line.label, part, tokens, flops, kv, kl, inside, first, f"{line.top1.value:.1%}", same
