"""Every method hears the stock model's answers to the same prompts, batch by batch; what came out is kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import fmean
from typing import Any, cast

from foveate.lab.evaluation import protocol
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.fidelity.forced import Heard, Said, hear
from foveate.lab.evaluation.fidelity.lines import Line
from foveate.lab.evaluation.fidelity.meter import Meter, asked
from foveate.lab.evaluation.fidelity.prompts import Prompt, drawn, from_file, from_words, grouped, of_benchmark
from foveate.lab.evaluation.fidelity.stock import Stock, load_stock
from foveate.lab.evaluation.fidelity.table import Faithful
from foveate.lab.evaluation.plan import BUDGETS, By, Entry, contenders, entries
from foveate.lab.evaluation.request import Fidelity
from foveate.lab.evaluation.runner import Tell, ask, store_of, versions
from foveate.lab.evaluation.store import Store, check_folder
from foveate.lab.terminal import CommandError


def measure(request: Fidelity, tell: Tell) -> Faithful:
    """Measure, or go on measuring. ``tell`` gets what happens now and the share of the work that is done.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then.
    """
    request.check()
    stock, prompts = prepare(request, tell)
    by = cast(By, request.by)
    named, notes = contenders(request, stock, bounds=False, words=request.new_tokens)
    methods = {label: method for label, method in named.items() if method is not None}
    if not methods:
        raise CommandError("the stock model is what everything is compared with: name a method, too")
    identity = identity_of(request, stock, prompts)
    folder = request.out / "answers"
    check_folder(folder, identity, request.overwrite)
    budgets = () if request.as_is else request.budgets or BUDGETS[by]
    meter = Meter(stock, prompts, request.batch_size, request.new_tokens)
    costs = Costs(meter, request.out / "costs.jsonl", identity)
    plan, missed = entries(dict(methods), budgets, stock.host, lambda method: costs(method).share(by), tell)
    stores = {entry: store_of(folder, identity, entry, by, Heard) for entry in plan}
    heard = listen(stock, prompts, stores, request, tell)
    tell("adding up", 1.0)
    lines = tuple(Line.of(entry, each) for entry, each in heard.items())
    length = fmean(len(each.kl) for some in heard.values() for each in some) if heard else 0.0
    return Faithful(request, stock.name, identity, lines, tuple(missed), tuple(notes), len(prompts), length)


def prepare(request: Fidelity, tell: Tell) -> tuple[Stock, list[Prompt]]:
    """The model and what it is asked; the prompts first, as they are read faster."""
    tell("reading the prompts", 0.0)
    prompts: list[Prompt] = []
    if request.data is not None:
        prompts = from_file(request.data)
    elif request.given:
        prompts = from_words(request.images, request.prompts)
    else:
        protocol.check_questions(request)
    tell("loading the model", 0.0)
    stock = load_stock(request.model, request.adapter, request.dtype, request.device, request.attn)
    if not prompts:
        tell("drawing the questions", 0.0)
        questions = [sample for seed in request.seeds for sample in protocol.questions_of(request, seed)]
        prompts = of_benchmark(questions, stock.side)
    return stock, drawn(prompts, request.samples, request.seeds[0])


def identity_of(request: Fidelity, stock: Stock, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What all answers of a folder have in common."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.id} {prompt.digest}".encode())
    return {
        "weights": stock.digest,
        "dtype": str(stock.model.dtype).removeprefix("torch."),
        "attention": stock.model.config._attn_implementation,
        "prompts": digest.hexdigest(),
        "new_tokens": request.new_tokens,
        "batch": request.batch_size,
        "versions": versions(),
    }


def listen(
    stock: Stock, prompts: Sequence[Prompt], stores: dict[Entry, Store[Heard]], request: Fidelity, tell: Tell
) -> dict[Entry, list[Heard]]:
    """What every entry hears, in the order of the prompts. The stock model answers a batch once for all of them."""

    def say(group: Sequence[Prompt]) -> Said:
        return asked(stock, group, request.new_tokens)

    def compared(said: Said, entry: Entry) -> list[Heard]:
        assert entry.method is not None
        return hear(stock.model, entry.method, said)

    ask(grouped(prompts, request.batch_size), stores, say, compared, tell)
    return {entry: [store.records[prompt.id] for prompt in prompts] for entry, store in stores.items()}
