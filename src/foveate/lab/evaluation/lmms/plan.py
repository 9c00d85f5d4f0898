"""What is run: the stock model, each method, and `Downsample` at what each method spends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from foveate.dial import TOLERANCE
from foveate.errors import FoveateError
from foveate.lab.asker import Asker
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.plan import Entry, Missed, entries
from foveate.lab.evaluation.request import Tasks
from foveate.method import Method
from foveate.methods.downsample import Downsample


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
