"""What a run would ask, said within seconds: the stock model is timed on a few questions, and no method is measured.

What methods spend is what a run needs minutes for before its first question. Where an earlier run has kept it, it is known;
elsewhere a plan says that it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from foveate.lab.asker import Cost
from foveate.lab.evaluation.costs import Known, UnmeasuredError, probes
from foveate.lab.evaluation.forecast import Forecast, Line, Seconds
from foveate.lab.evaluation.plan import Entry, entries
from foveate.lab.evaluation.reference import PROBED, Ground, check, few_threads
from foveate.lab.evaluation.request import Reference, budgets_of
from foveate.lab.evaluation.runner import Tell
from foveate.lab.evaluation.store import check_folder
from foveate.lab.terminal import note
from foveate.method import Method

#: Settings that the search for a budget tries, about, beside the two ends of a method's dial.
TRIED = 2


def plan(request: Reference, tell: Tell) -> Forecast:
    """What would be asked, and how long it takes here. Nothing is written."""
    return plan_all([request], tell)


def plan_all(requests: Sequence[Reference], tell: Tell) -> Forecast:
    """The same of evaluations that differ in their budgets alone and share a folder: what has no budget is asked once."""
    check(requests[0])
    with few_threads():
        ground = Ground.load(requests[0], tell)
        overwrite = ground.request.overwrite
        if not overwrite:
            check_folder(ground.answers, ground.identity)
        note(_contestants(list(ground.contenders)))
        known: Callable[[Method], Cost] = _unknown if overwrite else Known(*ground.costs(), ground.alone)
        found = []
        for number, request in enumerate(requests):
            here = replace(ground, request=request)
            settings = _settings(here, known)
            share = {entry: flops for entry, (flops, _) in settings.items() if not (number and entry.budget is None)}
            unset = [entry for entry in share if not settings[entry][1]]
            found.append((request.by, here.due(share), unset))
        of_one = ground.timed([each for _, due, _ in found for each in due], tell)
    lines = [
        Line.of(each, of_one, f"{each.entry} of {by}" if len(requests) > 1 and each.entry.budget else "")
        for by, due, _ in found
        for each in due
    ]
    unset = [entry for _, _, some in found for entry in some]
    methods = {entry.label: entry.method for entry in unset if entry.method is not None}
    seconds = sum(
        (2 + TRIED * _count(unset, name)) * _measuring(ground, each, of_one) for name, each in methods.items()
    )
    return Forecast(tuple(lines), len(methods), seconds)


def _settings(ground: Ground, known: Callable[[Method], Cost]) -> dict[Entry, tuple[float, bool]]:
    """Every contender at every budget: its FLOPs over the stock model's, about, and whether its dial is in its place."""
    request, host = ground.request, ground.asker.host
    found: dict[Entry, tuple[float, bool]] = {}
    for name, method in ground.contenders.items():
        one_each: list[tuple[float, ...]] = [(budget,) for budget in budgets_of(request)]
        for budgets in one_each or [()]:
            try:
                here, _ = entries(
                    {name: method}, budgets, host, lambda each: known(each).share(request.by), lambda what, done: None
                )
            except UnmeasuredError:
                here = []
                found[Entry(name, method, budgets[0])] = (budgets[0] if request.by == "flops" else 1.0, False)
            found |= {entry: (_flops(entry, known), True) for entry in here}
    return found


def _flops(entry: Entry, known: Callable[[Method], Cost]) -> float:
    """As it was measured, or the stock model's."""
    try:
        return 1.0 if entry.method is None else known(entry.method).share("flops")
    except UnmeasuredError:
        return 1.0


def _unknown(method: Method) -> Cost:
    raise UnmeasuredError


def _count(entries: Sequence[Entry], label: str) -> int:
    return sum(entry.label == label for entry in entries)


def _measuring(ground: Ground, method: Method, of_one: Seconds) -> float:
    """Seconds to measure what one setting of a method spends, about."""
    by_sizes = {sizes: seconds for (sizes, _), seconds in of_one.items()}
    slowest = max(by_sizes.values(), default=0.0)
    return sum(len(group) * by_sizes.get(group[0].sizes, slowest) for group in probes(method, ground.first, PROBED))


def _contestants(labels: Sequence[str]) -> str:
    """Who is asked."""
    named = labels if len(labels) <= 8 else [*labels[:8], f"{len(labels) - 8} others"]
    return f"who is asked: {', '.join(named)}"
