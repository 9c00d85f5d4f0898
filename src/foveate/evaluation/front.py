"""``foveate eval``, of either kind: options go to the one that was asked for, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from foveate.evaluation import curve
from foveate.terminal import CommandError

#: Options by the names that requests have for them.
FLAGS = {
    "seeds": "seed",
    "tasks": "task",
    "include": "include-path",
}


@dataclass(frozen=True)
class Words:
    """A command line. None is what was not said.

    Attributes:
        out: folder.
        model: see both kinds of request.
        tasks: of lmms-eval, separated by commas; None: the reference benchmark.
        common: options of both; ``reference``, ``public``: of one.
    """

    out: Path
    model: str | None
    tasks: str | None
    common: dict[str, Any]
    reference: dict[str, Any]
    public: dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A result: as plain data, and a function that prints it for a person."""

    data: dict[str, Any]
    show: Callable[[Console], None]


def evaluate(words: Words, tell: Callable[[str, float], None]) -> Shown | None:
    """Measure, write the report, and give it back; None: another process of accelerate has it."""
    curve.require()
    return _reference(words, tell) if words.tasks is None else _public(words, words.tasks, tell)


def _reference(words: Words, tell: Callable[[str, float], None]) -> Shown:
    from foveate.evaluation import protocol, report

    _refuse(words.public, "public benchmarks: say which, with --tasks, or leave it out")
    model = None if words.model is None else Path(words.model)
    found = protocol.evaluate(protocol.Request(words.out, model=model, **_said(words.common | words.reference)), tell)
    return Shown(report.to_json(found), partial(report.show, found, report.write(found)))


def _public(words: Words, tasks: str, tell: Callable[[str, float], None]) -> Shown | None:
    from foveate.evaluation.lmms import plan, report, run

    _refuse(words.reference, "the reference benchmark: leave it out, or --tasks")
    if words.model is None:
        raise CommandError(
            "--tasks asks a model of yours: say which, --model FOLDER or a hub id (or --model reference)"
        )
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise CommandError("--tasks names nothing: say which benchmarks, e.g. --tasks mme,textvqa_val")
    found = run.evaluate(plan.Request(words.out, words.model, names, **_said(words.common | words.public)), tell)
    return None if found is None else Shown(report.to_json(found), partial(report.show, found, report.write(found)))


def _said(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items() if value is not None
    }


def _refuse(options: dict[str, Any], whose: str) -> None:
    for name in _said(options):
        raise CommandError(f"--{FLAGS.get(name, name.replace('_', '-'))} belongs to {whose}")
