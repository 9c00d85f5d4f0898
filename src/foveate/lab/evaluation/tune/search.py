"""Where to look for a better setting. Every search is deterministic, and knows a model only by what it is told of a method.

A search proposes methods to ``judge``, which says their KL; which of them is the best is decided elsewhere, over all.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from foveate.errors import FoveateError
from foveate.lab.evaluation.plan import on_the_dial
from foveate.lab.terminal import CommandError
from foveate.method import Host, Method, Site
from foveate.methods.vtw import VTW
from foveate.schedule import Schedule, sigmoid
from foveate.serialise import options_of
from foveate.sums import Composed

Judge = Callable[[Method], float]
"""KL of a method, in nats."""
Fits = Callable[[Method], bool]
"""Whether a method can be attached to the model."""
Spend = Callable[[Callable[[float], Method]], "Method | None"]
"""A dial, share -> method, at the budget; None: out of its reach."""

SHARES = 64  # places of a smooth dial
GRID = 16  # shares of a greedy schedule
STEEPNESS = (0.0, 3.0, 6.0, 12.0, 24.0, 48.0)
ROUNDS = 2  # of a finer look around the best steepness
FINEST = 0.01  # less of a gain, relative to KL, ends the moving of options
OFFSETS = 8.0  # a share this far from the middle of a sigmoid is 0 or 1
FIRST = 5  # layer, counted from 0, at which VTW's authors begin
ETA = 0.003  # their limit for KL, but for these models
ETAS = {"llava-1.5-13b": 0.0005, "llava-1.6-vicuna-7b": 0.0001}


def takes_schedule(method: Method, host: Host, fits: Fits) -> int | None:
    """The first layer of a schedule that ``method`` can follow in this model; None: it follows none."""
    for layer in range(host.layers):
        try:
            paced = method.with_schedule(Schedule(((layer, 0.5),)))
        except FoveateError:
            return None
        if fits(paced):
            return layer
    return None


def along_the_dial(method: Method, host: Host, fits: Fits, judge: Judge, most: float) -> None:
    """The smallest `keep` whose KL is at most ``most``.

    A dial in steps is tried from the cheap end, as VTW's authors search its layer; a smooth one is bisected.
    """
    places: list[Method] = []
    known: list[Sequence[Site]] = []  # a dial in steps sets several shares alike
    for step in range(SHARES + 1):
        turned = method.with_keep(step / SHARES)
        if step / SHARES >= method.least(host) and turned.sites(host) not in known and fits(turned):
            places.append(turned)
            known.append(turned.sites(host))
    if len(places) <= SHARES:
        next((place for place in places if judge(place) <= most), None)
        return
    low, high = 0, len(places) - 1
    while low < high:
        middle = (low + high) // 2
        if judge(places[middle]) <= most:
            high = middle
        else:
            low = middle + 1
    judge(places[high])


def eta(model: str) -> float:
    """What KL may reach, in nats, in the authors' code of VTW: by the name of a model, or of its folder."""
    return next((most for name, most in ETAS.items() if name in model.lower().replace("llava-v", "llava-")), ETA)


def by_withdrawal(method: VTW, host: Host, fits: Fits, judge: Judge, most: float) -> None:
    """The rule of VTW's authors (arXiv 2405.05803): the first layer, from layer 5 on, whose KL is at most ``most``.

    Of the published: the layers and their order. Ours: layers after that one are not judged.

    Raises:
        CommandError: the model has no such layer.
    """
    if host.layers <= FIRST:
        raise CommandError(
            f"--search withdrawal begins at layer {FIRST}, counted from 0, and the model has {host.layers} layers: choose "
            "--search dial"
        )
    for layer in range(FIRST, host.layers):
        withdrawn = replace(method, layer=layer, keep=None)
        if fits(withdrawn) and judge(withdrawn) <= most:
            return


def takes_layers(method: Method) -> str | None:
    """The option that says in which layers a method saves something, so that more of them save more; None: it has none.

    Of several the first one that is not ``()``: each is ranked by itself.
    """
    if method.unit not in ("cache", "compute"):
        return None
    names = [name for name in options_of(type(method)) if name == "layers" or name.endswith("_layers")]
    return next((name for name in names if getattr(method, name) != ()), None)


def ranked(method: Method, host: Host, fits: Fits, judge: Judge, most: float) -> None:
    """RedundancyLens's ranking (arXiv 2501.19036): every round adds the layer that hurts least, until KL is out of bounds.

    Of the published: the greedy rounds, and that FFNs and attention have rankings of their own. Ours: KL on unlabelled prompts
    in place of scores on a validation set, of which drops count double; all layers are searched, where the paper puts the
    deepest ones first without asking; layers where the method cannot act are left out.
    """
    option = takes_layers(method) or "layers"
    chosen: tuple[int, ...] = ()
    free = list(range(host.layers))
    instead = method.how_much if "layers" in method.how_much else ()  # else how much each of them saves is as given
    unset: dict[str, Any] = {name: None for name in ("keep", *instead) if hasattr(method, name)}
    while free:
        found: dict[int, float] = {}
        for layer in free:
            options = {**unset, option: tuple(sorted((*chosen, layer)))}
            try:
                tried = replace(method, **options)
            except FoveateError:
                continue
            if fits(tried):
                found[layer] = judge(tried)
        best = min(found, key=lambda layer: found[layer], default=None)
        if best is None or found[best] > most:
            return
        chosen = (*chosen, best)
        free.remove(best)


def greedy(method: Method, host: Host, first: int, judge: Judge, most: float) -> None:
    """G-Search (arXiv 2412.00556): from shallow to deep, the smallest share that keeps KL in bounds, never more than before.

    Of the published: the order, that shares fall, one search per layer. Ours: bisection over sixteenths; and what KL may reach
    grows evenly with the layers that are decided, or the first of them would use all of it.
    """
    curve = [1.0] * host.layers
    for layer in range(first, host.layers):
        allowed = most * (layer - first + 1) / (host.layers - first)
        low, high = 0, round(curve[layer] * GRID)
        while low < high:
            middle = (low + high) // 2
            schedule = Schedule.along([*curve[:layer], *[middle / GRID] * (host.layers - layer)], first)
            if judge(method.with_schedule(schedule)) <= allowed:
                high = middle
            else:
                low = middle + 1
        curve[layer:] = [high / GRID] * (host.layers - layer)
    schedule = Schedule.along(curve, first)
    if schedule.stages:
        judge(method.with_schedule(schedule))


def along_sigmoids(method: Method, host: Host, first: int, judge: Judge, spend: Spend) -> None:
    """P-Sigmoid (arXiv 2412.00556): shares on a logistic curve over depth. The budget decides where it falls, KL how steeply.

    Ours: the published Bayesian search of one number is a coarse grid, then a finer one around the best.
    """

    def curve(steepness: float) -> Callable[[float], Method]:
        def at(share: float) -> Method:
            offset = share * (steepness + 2 * OFFSETS) - OFFSETS
            return method.with_schedule(Schedule.along(sigmoid(host.layers, steepness, offset), first))

        return at

    found: dict[float, float] = {}

    def look(steepness: float) -> None:
        at_budget = spend(curve(steepness))
        if at_budget is not None:
            found[steepness] = judge(at_budget)

    for steepness in STEEPNESS:
        look(steepness)
    for _ in range(ROUNDS if found else 0):
        known = sorted(found)
        place = known.index(min(known, key=lambda steepness: found[steepness]))
        for other in (place - 1, place + 1):
            if 0 <= other < len(known):
                look((known[place] + known[other]) / 2)


def among_options(
    method: Method, host: Host, fits: Fits, judge: Judge, spend: Callable[[Method], Method | None]
) -> None:
    """One option after the other is moved as long as that lowers KL by a hundredth; the dial then spends the budget again."""
    start = spend(method)
    best, least = (method, float("inf")) if start is None else (start, judge(start))
    improved = True
    while improved:
        improved = False
        for part, name in [(i, name) for i, each in enumerate(best.terms()) for name in _free(each, host)]:
            for moved in list(_moved(best, part, name)):
                at_budget = spend(moved) if fits(moved) else None
                kl = float("inf") if at_budget is None else judge(at_budget)
                if at_budget is not None and (math.isinf(least) or kl < least - FINEST * abs(least)):
                    best, least, improved = at_budget, kl, True


def _free(method: Method, host: Host) -> list[str]:
    """Options that the budget does not set."""
    turned = on_the_dial(method, host)
    return [name for name in options_of(type(method)) if name not in turned]


def _moved(method: Method, part: int, name: str) -> Iterator[Method]:
    """The method with one option of one part moved, where the method allows it."""
    parts = method.terms()
    hint = options_of(type(parts[part]))[name][0]
    for value in moves(getattr(parts[part], name), hint):
        option: dict[str, Any] = {name: value}
        try:
            moved = replace(parts[part], **option)
        except FoveateError:
            continue
        yield Composed((*parts[:part], moved, *parts[part + 1 :])) if isinstance(method, Composed) else moved


def moves(value: Any, hint: Any) -> list[Any]:
    """Other values of an option, near to far, by its type; none for what is no number, choice or list of layers."""
    if typing.get_origin(hint) is Literal:
        return [choice for choice in typing.get_args(hint) if choice != value]
    if value is not None and type(None) in typing.get_args(hint):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    kinds = typing.get_args(hint) or (hint,)
    found: list[Any] = []
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            found += [choice for choice in typing.get_args(kind) if choice != value]
    if isinstance(value, bool):
        found += [not value]
    elif isinstance(value, int):
        found += [value + step for step in (-1, 1, -2, 2, -4, 4)]
    elif isinstance(value, float):
        found += [round(value * factor, 4) for factor in (0.75, 1.25, 0.5, 1.5)]
    elif value is None and int in kinds:
        found += [1, 2, 4, 8]
    elif typing.get_origin(hint) is tuple and kinds[0] is int:
        steps = [(place, step) for place in range(len(value)) for step in (-1, 1, -2, 2)]
        moved = [(*value[:place], value[place] + step, *value[place + 1 :]) for place, step in steps]
        found += [each for each in moved if list(each) == sorted(set(each))]
    return [each for each in dict.fromkeys(found) if each != value and not (isinstance(each, int) and each < 0)]
