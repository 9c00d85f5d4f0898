"""The reference benchmark: every entry of the plan answers the same questions of it, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from foveate.lab import needs
from foveate.lab.asker import Answer, Asker, load_asker
from foveate.lab.checks import REFERENCES
from foveate.lab.evaluation.bounds import told
from foveate.lab.evaluation.costs import Costs, meter
from foveate.lab.evaluation.plan import Entry, budgets_of, contenders, entries
from foveate.lab.evaluation.questions import Prompt, check_questions, digest, layouts, of_benchmark, samples_of
from foveate.lab.evaluation.request import Reference
from foveate.lab.evaluation.results import Key, Question, rows
from foveate.lab.evaluation.runner import Tell, ask, store_of, versions
from foveate.lab.evaluation.store import Record, check_folder
from foveate.lab.evaluation.table import Evaluation
from foveate.lab.terminal import CommandError
from foveate.method import Method
from foveate.models import family_of

THREADS = 2  # the reference models' layers are too small for more
#: Visual tokens per batch: larger ones are no faster on a CPU.
TOKENS = 1600
#: Questions of a layout on which what methods spend is measured.
PROBED = 8


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
    from foveate_reference import TASKS

    tell("loading the model", 0.0)
    asker = load_subject(request.model, request.adapter)
    methods, notes = contenders(request, asker)
    tell("drawing the questions", 0.0)
    prompts = of_benchmark(samples_of(request, request.seeds[0]), asker.side)
    identity = {
        "weights": asker.digest,
        "split": request.split,
        "tasks": list(request.tasks or TASKS),
        "per_task": request.per_task,
        "versions": versions(),
    }
    check_folder(request.out / "answers", identity, request.overwrite)
    probed = {**identity, "seed": request.seeds[0], "questions": digest(prompts)}
    costs = Costs(meter(asker, prompts, PROBED, 1), request.out / f"costs-seed{request.seeds[0]}.jsonl", probed)
    plan, missed = entries(
        methods, budgets_of(request), asker.host, lambda method: costs(method).share(request.by), tell
    )
    questions: dict[Key, Question] = {}
    answers: dict[Entry, dict[Key, Record]] = {entry: {} for entry in plan}
    for number, seed in enumerate(request.seeds):
        if number:
            tell(f"seed {seed}: drawing the questions", number / len(request.seeds))
            prompts = of_benchmark(samples_of(request, seed), asker.side)
        about = {"seed": seed, "questions": digest(prompts)}
        stores = {entry: store_of(request, identity, entry, Record, **about) for entry in plan}

        def share(what: str, done: float, number: int = number) -> None:
            tell(what, (number + done) / len(request.seeds))

        ask(batches(prompts), stores, partial(_prepared, asker), partial(_answered, asker), share)
        questions |= {(seed, prompt.id): Question.of(prompt) for prompt in prompts}
        for entry, store in stores.items():
            answers[entry] |= {(seed, prompt.id): store.records[prompt.id] for prompt in prompts}
    tell("adding up", 1.0)
    lines = tuple(rows(plan, questions, answers))
    return Evaluation(request, asker.name, identity, lines, tuple(missed), tuple(notes))


@dataclass(frozen=True, eq=False)
class Batch:
    """Questions that are asked together, all with images of the same number and sizes, and a model's inputs of them."""

    prompts: Sequence[Prompt]
    inputs: Any

    @classmethod
    def of(cls, asker: Asker, prompts: Sequence[Prompt], blind: bool = False) -> Batch:
        return cls(prompts, asker.prepare([prompt.chat(blind) for prompt in prompts]))


def answer(asker: Asker, batch: Batch, method: Method | None) -> list[Answer]:
    """One generated word for each question, and what it cost; nobody measures the stock model, which costs all of it."""
    with told(batch.prompts), asker.carrying(method):
        return asker.answers(batch.inputs, {}, 1)


def batches(prompts: Sequence[Prompt], tokens: int = TOKENS) -> list[tuple[Prompt, ...]]:
    """Questions of one layout, up to ``tokens`` visual tokens together."""
    found = []
    for members in layouts(prompts):
        size = max(1, tokens // sum(cells.size for cells in members[0].evidence))
        found += [tuple(members[start : start + size]) for start in range(0, len(members), size)]
    return found


def load_subject(name: str, adapter: str | None = None) -> Asker:
    """The reference model of that name, or the one in that folder, with an adapter on it.

    Raises:
        CommandError: it cannot be loaded, or does not speak the benchmark's vocabulary, or does not make one visual token
            of each square of 16 px, which is what the evidence refers to.
    """
    if name not in REFERENCES and not Path(name).is_dir():
        raise CommandError(
            f"there is no model folder {name!r}: give one, or {' or '.join(REFERENCES)}; other models have no answers "
            "to these questions, so compare them by `foveate eval fidelity` or `foveate eval tasks`"
        )
    asker = load_asker(name, "float32", "cpu", adapter=adapter)
    asker.name = asker.name.replace(name, REFERENCES.get(name, name), 1)
    _check(asker)
    return asker


def _prepared(asker: Asker, group: Sequence[Prompt]) -> Callable[[bool], Batch]:
    """The batch, for who sees it and for who does not."""
    return cache(partial(Batch.of, asker, group))


def _answered(asker: Asker, prepared: Callable[[bool], Batch], entry: Entry) -> Iterable[Record]:
    batch = prepared(entry.blind)
    for prompt, said in zip(batch.prompts, answer(asker, batch, entry.method)):
        sample = prompt.sample
        assert sample is not None
        yield Record(sample.id, sample.task, said.text, said.text == sample.answer, said.cost)


def _check(asker: Asker) -> None:
    import numpy as np

    needs.reference()
    from foveate_reference.data import Sample
    from foveate_reference.vocabulary import CELL, SIZE, WORDS

    tokenizer = asker.processor.tokenizer
    ids = tokenizer(list(WORDS), add_special_tokens=False)["input_ids"]
    strange = [word for word, tokens in zip(WORDS, ids) if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id]
    if strange:
        raise CommandError(
            f"the tokenizer of {asker.name!r} has no token of its own for {len(strange)} of the benchmark's {len(WORDS)} words "
            f"({', '.join(strange[:3])} ...): use a model trained on the benchmark (`foveate train reference`)"
        )
    cells = (SIZE // CELL) ** 2
    for count, size in ((1, SIZE), (2, SIZE), (1, 2 * SIZE)):
        images = (np.zeros((size, size, 3), np.uint8),) * count
        evidence = (np.zeros((size // CELL, size // CELL), np.float32),) * count
        probe = Sample(id="", task="", images=images, question=WORDS[0], answer="", choices=(), evidence=evidence)
        wanted = cells * count * (size // SIZE) ** 2
        inputs = Batch.of(asker, of_benchmark([probe], asker.side)).inputs
        token = getattr(asker.model.config, family_of(asker.model.config).modalities["pixel_values"])
        found = int((inputs["input_ids"] == token).sum())
        if found != wanted:
            raise CommandError(
                f"the processor of {asker.name!r} makes {found} visual tokens of {count} image(s) of {size} x {size} px; the "
                f"benchmark needs {wanted}, one for each square of {CELL} px"
            )
