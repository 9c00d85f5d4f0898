"""The benchmark: every entry of the plan answers the same questions, batch by batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

import foveate
from foveate.lab import terminal
from foveate.lab.checks import check_budgets
from foveate.lab.evaluation.asking import answer
from foveate.lab.evaluation.batches import grouped
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.plan import By, Entry, Missed, contenders, entries, spending
from foveate.lab.evaluation.results import Key, Question, Row, rows
from foveate.lab.evaluation.store import Record, Store, check_folder, file_name
from foveate.lab.terminal import CommandError, check_once
from foveate.method import Positions

if TYPE_CHECKING:
    from foveate.lab.evaluation.subject import Subject
    from foveate_reference.data import Sample


Tell = Callable[[str, float], None]

#: Budgets where none is given. A model's tower may cost half of its FLOPs, so those do not go as low.
BUDGETS: dict[By, tuple[float, ...]] = {"tokens": (0.5, 0.35, 0.25, 0.15, 0.1), "flops": (0.9, 0.8, 0.7, 0.6, 0.5)}
BUDGETS["kv"] = BUDGETS["tokens"]
THREADS = 2  # the reference models' layers are too small for more


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        out: folder for answers and report.
        reference: name of the reference model; ``model``: folder of another one instead.
        adapter: folder or hub id of what ``foveate train`` wrote, for that model; its method, where no other is given.
        methods, options, described: see `foveate.lab.evaluation.plan.contenders`.
        budgets: shares of what the stock model spends, in (0, 1]; none: `BUDGETS`.
        by: what a budget counts: ``tokens`` (visual tokens per decoder layer), ``flops`` (of the whole call) or ``kv``.
        as_is: no budgets: every method as its options say.
        positions: ``keep`` or ``renumber`` for all methods; None: what each says.
        tasks: none: all.
        per_task: questions of each task, per seed.
        seeds: of the benchmark; each draws other questions.
        split: ``test``, ``validation`` or ``train``.
    """

    out: Path
    reference: str = "qwen2_5_vl"
    model: str | None = None
    adapter: str | None = None
    methods: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    described: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()
    by: str = "tokens"
    positions: str | None = None
    tasks: tuple[str, ...] = ()
    per_task: int = 100
    seeds: tuple[int, ...] = (0,)
    split: str = "test"
    as_is: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        request: what was measured.
        model: its name or folder.
        identity: weights, data and versions, as in the header of every file of answers.
        rows: one per entry, the stock model first.
        missed: budgets out of a method's reach.
        notes: what was left out, and why.
    """

    request: Request
    model: str
    identity: dict[str, Any]
    rows: tuple[Row, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]


def evaluate(request: Request, tell: Tell) -> Evaluation:
    """Measure, or go on measuring. ``tell`` gets what happens now and the share of the work that is done.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then.
    """
    check(request)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, threads))
    try:
        return _evaluate(request, tell)
    finally:
        torch.set_num_threads(threads)


def _evaluate(request: Request, tell: Tell) -> Evaluation:
    from foveate.lab.evaluation.subject import load

    tell("loading the model", 0.0)
    place = None if request.model is None else Path(request.model)
    subject = load(request.reference, place, request.adapter)
    by, positions = cast(By, request.by), cast("Positions | None", request.positions)
    described = request.described
    if subject.trained is not None and not (request.methods or described or request.options):
        described = (json.dumps(subject.trained.to_dict()),)
    methods, notes = contenders(request.methods, request.options, described, positions, subject, as_is=request.as_is)
    tell("drawing the questions", 0.0)
    asked = questions_of(request, request.seeds[0])
    identity = _identity(request, subject)
    folder = request.out / "answers"
    check_folder(folder, identity)
    budgets = () if request.as_is else request.budgets or BUDGETS[by]
    probed = {**identity, "seed": request.seeds[0], "questions": _digest(asked)}
    costs = Costs(spending(subject, asked), request.out / f"costs-seed{request.seeds[0]}.jsonl", probed)
    plan, missed = entries(methods, budgets, subject.host, lambda method: costs(method).share(by), tell)
    questions: dict[Key, Question] = {}
    answers: dict[Entry, dict[Key, Record]] = {entry: {} for entry in plan}
    for number, seed in enumerate(request.seeds):
        if number:
            tell(f"seed {seed}: drawing the questions", number / len(request.seeds))
            asked = questions_of(request, seed)
        stores = _stores(folder, request, identity, seed, plan, asked)

        def share(what: str, done: float, number: int = number) -> None:
            tell(what, (number + done) / len(request.seeds))

        ask(subject, asked, stores, share)
        questions |= {(seed, sample.id): Question.of(sample) for sample in asked}
        for entry, store in stores.items():
            answers[entry] |= {(seed, sample.id): store.records[sample.id] for sample in asked}
    tell("adding up", 1.0)
    return Evaluation(
        request, subject.name, identity, tuple(rows(plan, questions, answers)), tuple(missed), tuple(notes)
    )


def ask(subject: Subject, samples: Sequence[Sample], stores: dict[Entry, Store[Record]], tell: Tell) -> None:
    """Ask every entry what it has not answered yet. A batch is prepared once for all of them."""
    done, total = 0, len(samples) * len(stores)
    for group in grouped(samples):
        waiting = {
            entry: store for entry, store in stores.items() if any(sample.id not in store.records for sample in group)
        }
        done += (len(stores) - len(waiting)) * len(group)
        prepared = {
            blind: subject.preparation.batch(group, blind=blind) for blind in {entry.blind for entry in waiting}
        }
        for entry, store in waiting.items():
            tell(f"{group[0].task}: {entry}", done / total)
            words, cost = answer(subject, prepared[entry.blind], entry.method)
            store.add(
                Record(sample.id, sample.task, word, word == sample.answer, cost) for sample, word in zip(group, words)
            )
            done += len(group)


def questions_of(request: Request, seed: int) -> list[Sample]:
    """What is asked of the benchmark."""
    from foveate_reference import TASKS, samples

    try:
        return samples(request.split, tasks=request.tasks or TASKS, per_task=request.per_task, seed=seed)
    except ValueError as error:
        raise CommandError(str(error)) from None


def check(request: Request) -> None:
    """Raise `CommandError` for what is wrong with a request, before anything is loaded."""
    terminal.check_folder("out", request.out)
    check_budgets(request.budgets, request.by, request.positions)
    check_once(
        budget=request.budgets, seed=request.seeds, task=request.tasks, method=request.methods, option=request.options
    )
    if request.as_is and request.budgets:
        raise CommandError("--as-is takes methods as their options say, and --budget sets them: give one of the two")
    from foveate_reference import TASKS, samples

    for seed in request.seeds:  # a wrong one is found now, not when the others are done
        try:
            samples(request.split, tasks=(request.tasks or TASKS)[:1], per_task=1, seed=seed)
        except ValueError as error:
            raise CommandError(str(error)) from None


def _identity(request: Request, subject: Subject) -> dict[str, Any]:
    """What all answers of a folder have in common."""
    from foveate_reference import TASKS

    return {
        "weights": subject.digest,
        "split": request.split,
        "tasks": list(request.tasks or TASKS),
        "per_task": request.per_task,
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"foveate": foveate.__version__},
    }


def _stores(
    folder: Path, request: Request, identity: dict[str, Any], seed: int, plan: Sequence[Entry], asked: Sequence[Sample]
) -> dict[Entry, Store[Record]]:
    digest = _digest(asked)
    found = {}
    for entry in plan:
        by = None if entry.budget is None else request.by
        header = {
            **identity,
            "entry": entry.label,
            "budget": entry.budget,
            "by": by,
            "method": None if entry.method is None else entry.method.to_dict(),
            "seed": seed,
            "questions": digest,
        }
        found[entry] = Store(folder / file_name(str(entry), by, seed), header, Record)
    return found


def _digest(asked: Sequence[Sample]) -> str:
    """SHA-256 of the questions and every pixel."""
    digest = hashlib.sha256()
    for sample in asked:
        digest.update(f"{sample.id} {sample.question} {sample.answer}".encode())
        for image in sample.images:
            digest.update(image.tobytes())
    return digest.hexdigest()
