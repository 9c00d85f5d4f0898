"""``foveate eval``, of any kind: options go to the one that was asked for, or are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from foveate.lab import needs
from foveate.lab.evaluation import curve
from foveate.lab.terminal import CommandError, note

#: Options by the names that requests have for them.
FLAGS = {
    "seeds": "seed",
    "tasks": "task",
    "include": "include-path",
    "images": "image",
    "prompts": "prompt",
}


@dataclass(frozen=True)
class Words:
    """A command line. None is what was not said.

    Attributes:
        out: folder.
        model: see both kinds of request.
        tasks: of lmms-eval, separated by commas, or None.
        fidelity: whether to compare without labels; with neither, the reference benchmark.
        common: options of all three.
        reference: of the reference benchmark, of whose questions fidelity can be asked, too.
        running: of public benchmarks and fidelity: how a model runs.
        public, own: of public benchmarks, and of fidelity, alone.
    """

    out: Path
    model: str | None
    tasks: str | None
    fidelity: bool
    common: dict[str, Any]
    reference: dict[str, Any]
    running: dict[str, Any]
    public: dict[str, Any]
    own: dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A result: as plain data, and a function that prints it for a person."""

    data: dict[str, Any]
    show: Callable[[Console], None]


def evaluate(words: Words, tell: Callable[[str, float], None]) -> Shown | None:
    """Measure, write the report, and give it back; None: another process of accelerate has it."""
    if words.fidelity:
        return _fidelity(words, tell)
    _refuse(words.own, "--fidelity: the benchmarks have their own questions")
    found = _reference(words, tell) if words.tasks is None else _public(words, words.tasks, tell)
    return found if found is None or curve.can_draw() else Shown(found.data, partial(_without_curve, found.show))


def _without_curve(show: Callable[[Console], None], console: Console) -> None:
    """The tables, and what would have drawn them."""
    show(console)
    note(f"no picture was drawn, which needs matplotlib: {needs.command('matplotlib')}, then the same command draws it")


def _fidelity(words: Words, tell: Callable[[str, float], None]) -> Shown:
    from foveate.lab.evaluation.fidelity import Own, Request, measure, table

    _refuse(
        {"tasks": words.tasks}, "public benchmarks, which have labels: leave it out, or --fidelity", {"tasks": "tasks"}
    )
    _refuse(words.public, "public benchmarks: leave it out")
    running = _said(words.running)
    batch = {"batch": running.pop("batch_size")} if "batch_size" in running else {}
    own = Own(**_said(words.own), **running, **batch)
    found = measure(Request(words.out, model=words.model, **_said(words.common | words.reference), own=own), tell)
    return Shown(table.to_dict(found), partial(table.show, found, table.write(found)))


def _reference(words: Words, tell: Callable[[str, float], None]) -> Shown:
    from foveate.lab.evaluation import protocol, report

    _refuse(words.public, "public benchmarks: say which, with --tasks, or leave it out")
    _refuse(words.running, "public benchmarks, with --tasks, or --fidelity: say which, or leave it out")
    found = protocol.evaluate(
        protocol.Request(words.out, model=words.model, **_said(words.common | words.reference)), tell
    )
    return Shown(report.to_dict(found), partial(report.show, found, report.write(found)))


def _public(words: Words, tasks: str, tell: Callable[[str, float], None]) -> Shown | None:
    from foveate.lab.evaluation.lmms import plan, report, run

    _refuse(words.reference, "the reference benchmark: leave it out, or --tasks")
    if words.model is None:
        raise CommandError(
            "--tasks asks a model of yours: say which, --model FOLDER or a hub id (or --model reference)"
        )
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise CommandError("--tasks names nothing: say which benchmarks, e.g. --tasks mme,textvqa_val")
    found = run.evaluate(
        plan.Request(words.out, words.model, names, **_said(words.common | words.running | words.public)), tell
    )
    return None if found is None else Shown(report.to_dict(found), partial(report.show, found, report.write(found)))


def _said(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items() if value is not None
    }


def _refuse(options: dict[str, Any], whose: str, flags: Mapping[str, str] = FLAGS) -> None:
    for name in _said(options):
        raise CommandError(f"--{flags.get(name, name.replace('_', '-'))} belongs to {whose}")
