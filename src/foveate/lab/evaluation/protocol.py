"""The reference benchmark: every entry of the plan answers the same questions of it, batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import torch

from foveate.lab.evaluation.asking import answer
from foveate.lab.evaluation.batches import Batch, grouped
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.plan import BUDGETS, By, Entry, contenders, entries, spending
from foveate.lab.evaluation.request import Questions, Reference
from foveate.lab.evaluation.results import Key, Question, rows
from foveate.lab.evaluation.runner import Tell, ask, store_of, versions
from foveate.lab.evaluation.store import Record, check_folder
from foveate.lab.evaluation.table import Evaluation
from foveate.lab.terminal import CommandError

if TYPE_CHECKING:
    from foveate.lab.evaluation.subject import Subject
    from foveate_reference.data import Sample

THREADS = 2  # the reference models' layers are too small for more


def evaluate(request: Reference, tell: Tell) -> Evaluation:
    """Measure, or go on measuring. ``tell`` gets what happens now and the share of the work that is done.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then.
    """
    request.check()
    check_questions(request)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, threads))
    try:
        return _evaluate(request, tell)
    finally:
        torch.set_num_threads(threads)


def _evaluate(request: Reference, tell: Tell) -> Evaluation:
    from foveate.lab.evaluation.subject import load

    tell("loading the model", 0.0)
    subject = load(request.model, request.adapter)
    methods, notes = contenders(request, subject)
    tell("drawing the questions", 0.0)
    asked = questions_of(request, request.seeds[0])
    identity = _identity(request, subject)
    folder = request.out / "answers"
    check_folder(folder, identity, request.overwrite)
    by = cast(By, request.by)
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
        about = {"seed": seed, "questions": _digest(asked)}
        stores = {entry: store_of(folder, identity, entry, by, Record, **about) for entry in plan}

        def share(what: str, done: float, number: int = number) -> None:
            tell(what, (number + done) / len(request.seeds))

        ask(grouped(asked), stores, partial(_prepared, subject), partial(_answered, subject), share)
        questions |= {(seed, sample.id): Question.of(sample) for sample in asked}
        for entry, store in stores.items():
            answers[entry] |= {(seed, sample.id): store.records[sample.id] for sample in asked}
    tell("adding up", 1.0)
    lines = tuple(rows(plan, questions, answers))
    return Evaluation(request, subject.name, identity, lines, tuple(missed), tuple(notes))


def _prepared(subject: Subject, group: Sequence[Sample]) -> Callable[[bool], Batch]:
    """The batch, for who sees it and for who does not."""
    return cache(lambda blind: subject.preparation.batch(group, blind=blind))


def _answered(subject: Subject, prepared: Callable[[bool], Batch], entry: Entry) -> Iterable[Record]:
    batch = prepared(entry.blind)
    words, cost = answer(subject, batch, entry.method)
    for sample, word in zip(batch.samples, words):
        yield Record(sample.id, sample.task, word, word == sample.answer, cost)


def questions_of(request: Questions, seed: int) -> list[Sample]:
    """What is asked of the benchmark."""
    from foveate_reference import TASKS, samples

    try:
        return samples(request.split, tasks=request.tasks or TASKS, per_task=request.per_task, seed=seed)
    except ValueError as error:
        raise CommandError(str(error)) from None


def check_questions(request: Questions) -> None:
    """Raise `CommandError` for questions that the benchmark has not, of any seed, before anything is loaded."""
    from foveate_reference import TASKS, samples

    for seed in request.seeds:
        try:
            samples(request.split, tasks=(request.tasks or TASKS)[:1], per_task=1, seed=seed)
        except ValueError as error:
            raise CommandError(str(error)) from None


def _identity(request: Reference, subject: Subject) -> dict[str, Any]:
    """What all answers of a folder have in common."""
    from foveate_reference import TASKS

    return {
        "weights": subject.digest,
        "split": request.split,
        "tasks": list(request.tasks or TASKS),
        "per_task": request.per_task,
        "versions": versions(),
    }


def _digest(asked: Sequence[Sample]) -> str:
    """SHA-256 of the questions and every pixel."""
    digest = hashlib.sha256()
    for sample in asked:
        digest.update(f"{sample.id} {sample.question} {sample.answer}".encode())
        for image in sample.images:
            digest.update(image.tobytes())
    return digest.hexdigest()
