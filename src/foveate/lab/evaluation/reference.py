"""The reference benchmark: every entry of the plan answers the same questions of it, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from foveate.lab import needs
from foveate.lab.asker import Answer, Asker, load_asker
from foveate.lab.checks import REFERENCES
from foveate.lab.evaluation.best import with_best
from foveate.lab.evaluation.bounds import told
from foveate.lab.evaluation.costs import Costs, meter
from foveate.lab.evaluation.forecast import Due, Forecast, Seconds, Sizes, timed
from foveate.lab.evaluation.plan import Entry, Missed, contenders, entries
from foveate.lab.evaluation.questions import Prompt, check_questions, digest, layouts, of_benchmark, samples_of
from foveate.lab.evaluation.request import Reference, budgets_of
from foveate.lab.evaluation.results import Key, Question, rows
from foveate.lab.evaluation.runner import Tell, ask, place_of, store_of, versions
from foveate.lab.evaluation.sharing import Encoded, Shared, answers, shared_by
from foveate.lab.evaluation.store import Record, Store, check_folder, kept
from foveate.lab.evaluation.table import Evaluation
from foveate.lab.speech import unknown
from foveate.lab.terminal import CommandError, note
from foveate.method import Method
from foveate.models import family_of

THREADS = 2  # the reference models' layers are too small for more
#: Visual tokens per batch: larger ones are no faster on a CPU.
TOKENS = 1600
#: Questions of a batch where those about the same images share these: each has a cache of its own, which takes memory.
ROWS = 64
#: Questions of a layout on which what methods spend is measured.
PROBED = 8


def evaluate(request: Reference, tell: Tell) -> Evaluation:
    """Measure, or go on measuring. ``tell`` gets what happens now and the share of the work that is done.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then.
    """
    with running(request, tell) as run:
        return run.through(tell)


@contextmanager
def running(request: Reference, tell: Tell) -> Iterator[Run]:
    """A run that has begun, on as many threads as its models can use."""
    check(request)
    with few_threads():
        yield Run.begin(request, tell)


def check(request: Reference) -> None:
    """Raise a `FoveateError` for what is wrong before anything is loaded."""
    request.check()
    check_questions(request)


@contextmanager
def few_threads() -> Iterator[None]:
    """No more threads than the models can use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, threads))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class Ground:
    """What is asked of which model, before any method is set to a budget.

    Attributes:
        identity: what the answers of all entries depend on.
        contenders: methods by label, their dials not yet set; ``notes``: what was left out.
        first: the questions of the first seed.
    """

    request: Reference
    asker: Asker
    identity: dict[str, Any]
    contenders: dict[str, Method | None]
    notes: list[str]
    first: list[Prompt]

    @classmethod
    def load(cls, request: Reference, tell: Tell) -> Ground:
        """Load the model, see which methods fit it, and draw the questions of the first seed."""
        from foveate_reference import TASKS

        tell("loading the model", 0.0)
        asker = load_subject(request.model, request.adapter)
        methods, notes = contenders(with_best(request), asker, words=asker.speech.longest)
        tell("drawing the questions", 0.0)
        prompts = of_benchmark(samples_of(request, request.seeds[0], asker.speech), asker.side)
        identity = {
            "weights": asker.digest,
            "split": request.split,
            "tasks": list(request.tasks or TASKS),
            "per_task": request.per_task,
            "versions": versions(),
        }
        return cls(request, asker, identity, methods, notes, prompts)

    @property
    def answers(self) -> Path:
        """The folder of what is answered."""
        return self.request.out / "answers"

    @property
    def alone(self) -> bool:
        """Whether nothing has been answered yet."""
        return not any(self.answers.glob("*.jsonl"))

    def costs(self) -> tuple[Path, dict[str, Any]]:
        """Where what methods spend is kept, and what that depends on."""
        seed = self.request.seeds[0]
        return self.request.out / f"costs-seed{seed}.jsonl", {
            **self.identity,
            "seed": seed,
            "questions": digest(self.first),
        }

    def questions(self, seed: int) -> list[Prompt]:
        """Those of a seed."""
        if seed == self.request.seeds[0]:
            return self.first
        return of_benchmark(samples_of(self.request, seed, self.asker.speech), self.asker.side)

    def grouped(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, ...]]:
        """In batches."""
        return batches(prompts, by_view=True) if self.asker.speech.english else batches(prompts)

    def due(self, entries: Mapping[Entry, float]) -> list[Due]:
        """What every entry has not answered yet, of all seeds; ``entries`` has the FLOPs of each. Nothing is written."""
        left: dict[Entry, Counter[Sizes]] = {entry: Counter() for entry in entries}
        for seed in self.request.seeds:
            prompts = self.questions(seed)
            about = {"seed": seed, "questions": digest(prompts)}
            for entry, sizes in left.items():
                path, header = place_of(self.request, self.identity, entry, **about)
                there = path.is_file() and not self.request.overwrite
                known = {record.id for record in kept(path, header, Record)} if there else set()
                sizes.update(prompt.sizes for prompt in prompts if prompt.id not in known)
        return [Due(entry, self._shared(entry), sizes, entries[entry]) for entry, sizes in left.items()]

    def timed(self, due: Sequence[Due], tell: Tell) -> Seconds:
        """What a question takes the stock model."""

        def ask_stock(prompts: Sequence[Prompt]) -> None:
            answer(self.asker, Batch.of(self.asker, prompts), None)

        return timed(self.grouped(self.first), due, ask_stock, tell)

    def _shared(self, entry: Entry) -> str:
        """What its questions about the same images share."""
        if not self.asker.speech.english:
            return "nothing"
        return "prompt" if entry.method is None else shared_by(entry.method, self.asker.host)


@dataclass(frozen=True, eq=False)
class Run:
    """A run that has begun.

    Attributes:
        costs: what a method spends on the questions of the first seed.
        entries, missed: every method at every budget, and budgets out of reach.
    """

    ground: Ground
    costs: Costs
    entries: list[Entry]
    missed: list[Missed]

    @classmethod
    def begin(cls, request: Reference, tell: Tell) -> Run:
        """Load the model, and set every method to every budget."""
        ground = Ground.load(request, tell)
        asker = ground.asker
        check_folder(ground.answers, ground.identity, request.overwrite)
        costs = Costs(meter(asker, ground.first, PROBED, asker.speech.longest), *ground.costs(), ground.alone)
        found, missed = entries(
            ground.contenders, budgets_of(request), asker.host, lambda method: costs(method).share(request.by), tell
        )
        return cls(ground, costs, found, missed)

    def asked(self, seed: int) -> tuple[list[Prompt], dict[Entry, Store[Record]]]:
        """The questions of a seed, and what each entry has answered already."""
        ground, prompts = self.ground, self.ground.questions(seed)
        about = {"seed": seed, "questions": digest(prompts)}
        return prompts, {e: store_of(ground.request, ground.identity, e, Record, **about) for e in self.entries}

    def forecast(self, tell: Tell) -> Forecast:
        """How long all seeds take."""
        due = self.ground.due(
            {e: 1.0 if e.method is None else self.costs(e.method).share("flops") for e in self.entries}
        )
        return Forecast.of(due, self.ground.timed(due, tell))

    def through(self, tell: Tell) -> Evaluation:
        """Ask what has not been asked yet, and add up."""
        questions, known = self.answered(tell)
        tell("adding up", 1.0)
        lines = tuple(rows(self.entries, questions, known))
        ground = self.ground
        return Evaluation(
            ground.request, ground.asker.name, ground.identity, lines, tuple(self.missed), tuple(ground.notes)
        )

    def answered(self, tell: Tell) -> tuple[dict[Key, Question], dict[Entry, dict[Key, Record]]]:
        """Ask what has not been asked yet: the questions, and what each entry has answered to them."""
        request, asker = self.ground.request, self.ground.asker
        if asker.speech.english:
            note(str(self.forecast(tell)))
        questions: dict[Key, Question] = {}
        known: dict[Entry, dict[Key, Record]] = {entry: {} for entry in self.entries}
        for number, seed in enumerate(request.seeds):
            tell(f"seed {seed}: drawing the questions", number / len(request.seeds))
            prompts, stores = self.asked(seed)

            def share(what: str, done: float, number: int = number) -> None:
                tell(what, (number + done) / len(request.seeds))

            ask(self.ground.grouped(prompts), stores, partial(_prepared, asker), partial(_answered, asker), share)
            questions |= {(seed, prompt.id): Question.of(prompt) for prompt in prompts}
            for entry, store in stores.items():
                known[entry] |= {(seed, prompt.id): store.records[prompt.id] for prompt in prompts}
        return questions, known


@dataclass(frozen=True, eq=False)
class Batch:
    """Questions that are asked together, all with images of the same number and sizes, and a model's inputs of them."""

    prompts: Sequence[Prompt]
    inputs: Any

    @classmethod
    def of(cls, asker: Asker, prompts: Sequence[Prompt], blind: bool = False) -> Batch:
        return cls(prompts, asker.prepare([prompt.chat(blind) for prompt in prompts]))

    @cached_property
    def encoded(self) -> Encoded:
        """The same, for several methods that are asked one after another."""
        return Encoded(self.inputs)


def answer(asker: Asker, batch: Batch, method: Method | None) -> list[Answer]:
    """What is answered to each question, and what it cost; nobody measures the stock model, which costs all of it."""
    most = asker.speech.longest
    with told(batch.prompts), asker.carrying(method):
        if not asker.speech.english:  # a small model's batch has many images, and few questions about each
            return batch.encoded.answers(asker, method, most)
        return answers(asker, Shared.of(asker, batch.prompts, batch.inputs), method, most)


def batches(prompts: Sequence[Prompt], tokens: int = TOKENS, by_view: bool = False) -> list[tuple[Prompt, ...]]:
    """Questions of one layout, up to ``tokens`` visual tokens together.

    Args:
        by_view: those about the same images stand together, and these images count once; up to `ROWS` questions.
    """
    found = []
    for members in layouts(prompts):
        size = max(1, tokens // sum(cells.size for cells in members[0].evidence))
        if by_view:
            views: dict[str, list[Prompt]] = {}
            for prompt in members:
                views.setdefault(prompt.seen, []).append(prompt)
            together: list[list[Prompt]] = []
            for view in views.values():
                if not together or len(together) == size or len(view) + sum(map(len, together)) > ROWS:
                    found += [tuple(chain(*together))] if together else []
                    together = []
                together.append(view)
            found.append(tuple(chain(*together)))
        else:
            found += [tuple(members[start : start + size]) for start in range(0, len(members), size)]
    return found


def load_subject(name: str, adapter: str | None = None) -> Asker:
    """The reference model of that name, or the one in that folder, with an adapter on it.

    Raises:
        CommandError: it cannot be loaded, or speaks neither the benchmark's vocabulary nor English, or does not make one
            visual token of each square of 16 px, which is what the evidence refers to.
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

    strange = [] if asker.speech.english else unknown(asker.processor.tokenizer)
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
