"""Every method hears the stock model's answers to the same prompts, batch by batch; what came out is kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from foveate.lab import cautions
from foveate.lab.asker import Asker, load_asker
from foveate.lab.evaluation import questions
from foveate.lab.evaluation.costs import Costs, meter
from foveate.lab.evaluation.fidelity.table import Faithful, Line
from foveate.lab.evaluation.forced import Heard, Said, asked, hear
from foveate.lab.evaluation.plan import Entry, contenders, entries
from foveate.lab.evaluation.questions import Prompt, drawn, from_file, from_words, grouped, of_benchmark
from foveate.lab.evaluation.request import Fidelity, budgets_of
from foveate.lab.evaluation.runner import Tell, ask, store_of, versions
from foveate.lab.evaluation.store import Store, check_folder
from foveate.lab.terminal import CommandError, warn_once


def measure(request: Fidelity, tell: Tell) -> Faithful:
    """Measure, or go on measuring. ``tell`` gets what happens now and the share of the work that is done.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then.
    """
    request.check()
    asker, prompts = prepare(request, tell)
    named, notes = contenders(request, asker, bounds=False, words=request.new_tokens)
    methods = {label: method for label, method in named.items() if method is not None}
    if not methods:
        raise CommandError("the stock model is what everything is compared with: name a method, too")
    identity = identity_of(request, asker, prompts)
    check_folder(request.out / "answers", identity, request.overwrite)
    costs = Costs(meter(asker, prompts, request.batch_size, request.new_tokens), request.out / "costs.jsonl", identity)
    plan, missed = entries(
        dict(methods), budgets_of(request), asker.host, lambda method: costs(method).share(request.by), tell
    )
    stores = {entry: store_of(request, identity, entry, Heard) for entry in plan}
    heard = listen(asker, prompts, stores, request, tell)
    tell("adding up", 1.0)
    lines = tuple(Line.of(entry, each) for entry, each in heard.items())
    length = fmean(len(each.kl) for some in heard.values() for each in some) if heard else 0.0
    return Faithful(request, asker.name, identity, lines, tuple(missed), tuple(notes), len(prompts), length)


def prepare(request: Fidelity, tell: Tell) -> tuple[Asker, list[Prompt]]:
    """The model and what it is asked; the prompts first, as they are read faster."""
    tell("reading the prompts", 0.0)
    prompts: list[Prompt] = []
    if request.data is not None:
        prompts = from_file(request.data)
    elif request.given:
        prompts = from_words(request.images, request.prompts)
    else:
        questions.check_questions(request)
    tell("loading the model", 0.0)
    asker = load_asker(request.model, request.dtype, request.device, request.attn, request.adapter)
    words = [each.text for each in prompts]
    for line in cautions.about_model(request.model, asker.model, asker.processor, words) if prompts else ():
        warn_once(line)
    if not prompts:
        tell("drawing the questions", 0.0)
        samples = [sample for seed in request.seeds for sample in questions.samples_of(request, seed, asker.speech)]
        prompts = of_benchmark(samples, asker.side)
    return asker, drawn(prompts, request.samples, request.seeds[0])


def identity_of(request: Fidelity, asker: Asker, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What all answers of a folder have in common."""
    return {
        "weights": asker.digest,
        "dtype": str(asker.model.dtype).removeprefix("torch."),
        "attention": asker.model.config._attn_implementation,
        "prompts": questions.digest(prompts),
        "new_tokens": request.new_tokens,
        "batch": request.batch_size,
        "versions": versions(),
    }


def listen(
    asker: Asker,
    prompts: Sequence[Prompt],
    stores: dict[Entry, Store[Heard]],
    request: Fidelity,
    tell: Tell,
    reverse: bool = False,
) -> dict[Entry, list[Heard]]:
    """What every entry hears, in the order of the prompts. The stock model answers a batch once for all of them."""

    def say(group: Sequence[Prompt]) -> Said:
        return asked(asker, group, request.new_tokens)

    def compared(said: Said, entry: Entry) -> list[Heard]:
        assert entry.method is not None
        return hear(asker.model, entry.method, said, asker.learned, reverse)

    ask(grouped(prompts, request.batch_size), stores, say, compared, tell)
    return {entry: [store.records[prompt.id] for prompt in prompts] for entry, store in stores.items()}
