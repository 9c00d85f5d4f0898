"""Every method hears the stock model's answers to the same prompts, batch by batch; what came out is kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import foveate
from foveate.lab.evaluation import protocol
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.fidelity.forced import Heard, hear
from foveate.lab.evaluation.fidelity.lines import Line
from foveate.lab.evaluation.fidelity.meter import Meter, asked
from foveate.lab.evaluation.fidelity.prompts import Prompt, drawn, from_file, from_words, grouped, of_benchmark
from foveate.lab.evaluation.fidelity.stock import Stock, load_stock
from foveate.lab.evaluation.plan import By, Entry, Missed, contenders, entries
from foveate.lab.evaluation.protocol import BUDGETS, Tell
from foveate.lab.evaluation.store import Store, check_folder, file_name
from foveate.lab.terminal import CommandError
from foveate.method import Positions


@dataclass(frozen=True)
class Own:
    """What only fidelity has.

    Attributes:
        data: a file of prompts (`foveate.lab.evaluation.fidelity.prompts.from_file`).
        images, prompts: or these; without both, questions of the reference benchmark.
        samples: use so many, drawn by the first seed; None: all.
        new_tokens: of an answer at most.
        batch: prompts at once.
        dtype, device, attn: as in `foveate.lab.loading`.
    """

    data: Path | None = None
    images: tuple[Path, ...] = ()
    prompts: tuple[str, ...] = ()
    samples: int | None = None
    new_tokens: int = 32
    batch: int = 8
    dtype: str = "auto"
    device: str = "auto"
    attn: str | None = None


@dataclass(frozen=True)
class Request(protocol.Request):
    """What to measure; the benchmark's questions where there is no data of one's own."""

    own: Own = Own()

    @property
    def name(self) -> str:
        """Of the model, as `foveate.lab.loading.load` wants it."""
        if self.model is not None:
            return self.model
        return "reference" if self.reference == "qwen2_5_vl" else f"reference-{self.reference}"


@dataclass(frozen=True)
class Found:
    """What came out.

    Attributes:
        request: what was measured.
        model: its name or folder.
        identity: model, prompts and versions, as in the header of every file of answers.
        prompts: how many.
        length: mean tokens of the stock model's answers.
        lines: one for each entry.
        missed: budgets out of a method's reach.
        notes: what was left out, and why.
    """

    request: Request
    model: str
    identity: dict[str, Any]
    prompts: int
    length: float
    lines: tuple[Line, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]


def measure(request: Request, tell: Tell) -> Found:
    """Measure, or go on measuring. ``tell`` gets what happens now and the share of the work that is done.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then.
    """
    protocol.check(request)
    stock, prompts = prepare(request, tell)
    by, positions = cast(By, request.by), cast("Positions | None", request.positions)
    described = request.described
    if stock.trained is not None and not (request.methods or described or request.options):
        described = (json.dumps(stock.trained.to_dict()),)
    named, notes = contenders(
        request.methods,
        request.options,
        described,
        positions,
        stock,
        as_is=request.as_is,
        bounds=False,
        words=request.own.new_tokens,
    )
    methods = {label: method for label, method in named.items() if method is not None}
    if not methods:
        raise CommandError("the stock model is what everything is compared with: name a method, too")
    identity = identity_of(request, stock, prompts)
    folder = request.out / "answers"
    check_folder(folder, identity)
    budgets = () if request.as_is else request.budgets or BUDGETS[by]
    meter = Meter(stock, prompts, request.own.batch, request.own.new_tokens)
    costs = Costs(meter, request.out / "costs.jsonl", identity)
    plan, missed = entries(dict(methods), budgets, stock.host, lambda method: costs(method).share(by), tell)
    stores = {entry: store_of(folder, identity, entry, request.by) for entry in plan}
    listen(stock, grouped(prompts, request.own.batch), stores, request.own.new_tokens, tell)
    tell("adding up", 1.0)
    heard = {entry: [store.records[prompt.id] for prompt in prompts] for entry, store in stores.items()}
    lines = tuple(Line.of(entry, each) for entry, each in heard.items())
    length = fmean(len(each.kl) for some in heard.values() for each in some) if heard else 0.0
    return Found(request, stock.name, identity, len(prompts), length, lines, tuple(missed), tuple(notes))


def prepare(request: Request, tell: Tell) -> tuple[Stock, list[Prompt]]:
    """The model and what it is asked; the prompts first, as they are read faster."""
    own = request.own
    if own.data is not None and (own.images or own.prompts):
        raise CommandError("--data has images and prompts: leave out --image and --prompt")
    if own.new_tokens < 1:
        raise CommandError(f"--new-tokens {own.new_tokens}: give at least 1")
    tell("reading the prompts", 0.0)
    prompts: list[Prompt] = []
    if own.data is not None:
        prompts = from_file(own.data)
    elif own.images or own.prompts:
        prompts = from_words(own.images, own.prompts)
    tell("loading the model", 0.0)
    stock = load_stock(request.name, request.adapter, own.dtype, own.device, own.attn)
    if not prompts:
        tell("drawing the questions", 0.0)
        asked = [sample for seed in request.seeds for sample in protocol.questions_of(request, seed)]
        prompts = of_benchmark(asked, stock.side)
    grouped(prompts, own.batch)  # a wrong size is found now
    return stock, drawn(prompts, own.samples, request.seeds[0])


def identity_of(request: Request, stock: Stock, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What all answers of a folder have in common."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.id} {prompt.digest}".encode())
    return {
        "weights": stock.digest,
        "dtype": str(stock.model.dtype).removeprefix("torch."),
        "attention": stock.model.config._attn_implementation,
        "prompts": digest.hexdigest(),
        "new_tokens": request.own.new_tokens,
        "batch": request.own.batch,
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"foveate": foveate.__version__},
    }


def store_of(folder: Path, identity: dict[str, Any], entry: Entry, by: str) -> Store[Heard]:
    """Where what is heard under an entry is kept."""
    assert entry.method is not None
    spent = None if entry.budget is None else by
    about = {"entry": entry.label, "budget": entry.budget, "by": spent, "method": entry.method.to_dict()}
    return Store(folder / file_name(str(entry), spent), {**identity, **about}, Heard)


def listen(
    stock: Stock, batches: Sequence[Sequence[Prompt]], stores: dict[Entry, Store[Heard]], new_tokens: int, tell: Tell
) -> None:
    """Let every entry hear what it has not heard yet. The stock model answers a batch once for all of them."""
    done, total = 0, sum(map(len, batches)) * len(stores)
    for group in batches:
        waiting = {
            entry: store for entry, store in stores.items() if any(each.id not in store.records for each in group)
        }
        done += (len(stores) - len(waiting)) * len(group)
        if waiting:
            tell("the stock model answers", done / total)
            said = asked(stock, group, new_tokens)
        for entry, store in waiting.items():
            tell(str(entry), done / total)
            assert entry.method is not None
            store.add(hear(stock.model, entry.method, said))
            done += len(group)
