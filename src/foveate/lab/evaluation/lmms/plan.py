"""What is run: the stock model, each method, and `Downsample` at what each method spends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from foveate.dial import TOLERANCE
from foveate.errors import FoveateError
from foveate.handle import host_of
from foveate.lab.devices import device_of, put
from foveate.lab.evaluation.asking import Cost
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.lmms.asker import Asker
from foveate.lab.evaluation.plan import Entry, Missed, entries
from foveate.lab.evaluation.request import Tasks
from foveate.lab.loading import load
from foveate.method import Method
from foveate.methods.downsample import Downsample
from foveate.trained import adapted

#: Inputs of each task on which budgets are measured.
PROBES = 8


def subject(request: Tasks, device: Any = None) -> Asker:
    """The model, ready to be asked; its adapter says a method, too."""
    place = device_of(request.device) if device is None else device
    model, processor = load(request.model, request.dtype, request.attn)
    trained = None if request.adapter is None else adapted(model, request.adapter, host_of(model))
    put(model, place, request.model)
    return Asker(model, processor, trained)


def spending(asker: Asker, inputs: Sequence[Any]) -> Callable[[Method], Cost]:
    """Measures what a method spends."""
    return lambda method: Cost.total((asker.spend(each, method), 1) for each in inputs)


def plan(
    request: Tasks, asker: Asker, methods: dict[str, Method | None], costs: Costs, tell: Callable[[str], None]
) -> tuple[list[Entry], list[Missed], list[str]]:
    """Set every method to every budget, and `Downsample` to what each of them spends; and what could not be."""
    notes: list[str] = []

    def cost(method: Method) -> float:
        return costs(method).share(request.by)

    found, missed = entries(methods, request.budgets, asker.host, cost, lambda what, done: tell(what))
    # What was not set to a budget is compared at what it spends.
    found = [
        replace(each, budget=round(cost(each.method), 2)) if each.method and each.budget is None else each
        for each in found
    ]
    tell("finding Downsample's sizes")
    there = {entry.budget for entry in found if isinstance(entry.method, Downsample)}
    budgets = dict.fromkeys(entry.budget for entry in found if entry.budget is not None and entry.budget not in there)
    for budget in [each for each in budgets if each > 1 - TOLERANCE]:
        notes.append(f"no Group-A at a budget of {budget:g}: Downsample would not change a thing there")
        del budgets[budget]
    if budgets:
        try:
            small, out_of_reach = entries(
                {Downsample.name(): Downsample()}, list(budgets), asker.host, cost, lambda what, done: None
            )
        except FoveateError as error:
            return found, missed, [f"no Group-A: {error}"]
        found, missed = [*found, *small], [*missed, *out_of_reach]
    return found, missed, notes
