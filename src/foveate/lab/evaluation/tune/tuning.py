"""The search, and the check of what it found on prompts that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import cast

from foveate.dial import TOLERANCE, Dial
from foveate.lab import cautions
from foveate.lab.evaluation import statistics
from foveate.lab.evaluation.costs import Costs, meter
from foveate.lab.evaluation.fidelity.measuring import identity_of, listen, prepare
from foveate.lab.evaluation.fidelity.table import Line, kls
from foveate.lab.evaluation.forced import Heard
from foveate.lab.evaluation.plan import Entry, check_fit, has_dial
from foveate.lab.evaluation.questions import Prompt, grouped
from foveate.lab.evaluation.request import Fidelity, Own, Running
from foveate.lab.evaluation.runner import Tell, about
from foveate.lab.evaluation.store import Store, check_folder, file_name
from foveate.lab.evaluation.tune import search
from foveate.lab.evaluation.tune.request import Tune
from foveate.lab.evaluation.tune.table import FOUND, GIVEN, SAME_COST, Tuned
from foveate.lab.evaluation.tune.trials import Enough, Trial, Trials
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError
from foveate.method import Host, Method
from foveate.methods.vtw import VTW

#: Prompts of the reference benchmark, where no number is given.
SAMPLES = 80
Cost = Callable[[Method], float]


def tune(request: Tune, tell: Tell) -> Tuned:
    """Search, or go on searching, and check.

    Raises:
        FoveateError: something in the request is wrong, or no setting is what was asked for.
    """
    request.check()
    given = method_from_words(request.method, None, request.options, request.described)
    withdrawal = request.search == "withdrawal"
    if withdrawal and request.max_kl is None:
        request = replace(request, max_kl=search.eta(request.model))
    asked = asking(request)
    asker, prompts = prepare(asked, tell)
    apart = round(len(prompts) * request.held_out)
    if not 0 < apart < len(prompts):
        raise CommandError(
            f"with {request.held_out:.3g} of {len(prompts)} prompts held out, one side has none: give more prompts"
        )
    seen, unseen = prompts[apart:], prompts[:apart]
    check_fit(given, asker, request.new_tokens)
    cautions.say(asker.name, [given], asker.host)
    goal = {name: getattr(request, name) for name in ("max_kl", "budget", "by", "search", "trials", "held_out", "seed")}
    header = {**identity_of(asked, asker, prompts), "goal": goal, "given": given.to_dict()}
    check_folder(request.out / "answers", header, request.overwrite)
    batches, length = grouped(seen, request.batch_size), request.new_tokens
    trials = Trials(
        asker,
        batches,
        1 if withdrawal else length,
        request.out / "trials.jsonl",
        header,
        request.trials,
        tell,
        withdrawal,
    )
    costs = Costs(meter(asker, seen, request.batch_size, length), request.out / "costs.jsonl", header)

    def cost(method: Method) -> float:
        return costs(method).share(request.by)

    how, exhausted = _search(request, given, asker.host, trials, cost)
    best = _best(request, given, list(trials.judged.values()))
    entries = _compared(request, given, best, asker.host, cost, how)

    def heard(prompts: Sequence[Prompt], part: str) -> dict[Entry, list[Heard]]:
        stores = {}
        for entry in entries:
            name = file_name(f"{entry.label} {part}", None)
            stores[entry] = Store(folder / name, {**header, "part": part, **about(entry, request.by)}, Heard)
        return listen(asker, prompts, stores, asked, tell, reverse=withdrawal)

    folder = request.out / "answers"
    on_seen, on_unseen = heard(seen, "calibration"), heard(unseen, "held-out")
    known = {entry.label: kls(each) for entry, each in on_unseen.items()}
    gain = statistics.average(known[SAME_COST] - known[FOUND]) if SAME_COST in known else None
    lines, others = (tuple(Line.of(*each) for each in part.items()) for part in (on_seen, on_unseen))
    judged = len(trials.judged)
    return Tuned(request, given, asker.name, header, how, best.method, judged, exhausted, lines, others, gain)


def asking(request: Tune) -> Fidelity:
    """What is asked. The benchmark's test split is not for tuning."""
    from foveate_reference import TASKS

    shared = {field.name: getattr(request, field.name) for part in (Own, Running) for field in fields(part)}
    if not request.given:
        shared["samples"] = request.samples or SAMPLES
    return Fidelity(
        request.out,
        request.model,
        request.adapter,
        per_task=-(-(request.samples or SAMPLES) // len(TASKS)),
        seeds=(request.seed,),
        split="validation",
        **shared,
    )


def _search(request: Tune, method: Method, host: Host, trials: Trials, cost: Cost) -> tuple[str, bool]:
    """How was searched, and whether there was more to judge than may be. What was given is judged, too, but by `withdrawal`."""
    most = request.max_kl
    first = search.takes_schedule(method, host, trials.fits)
    how = request.search
    if how == "auto":
        how = ("dial" if first is None else "greedy") if most is not None else "options" if first is None else "sigmoid"
    if how in ("greedy", "sigmoid") and first is None:
        raise CommandError(f"{method.name()} follows no schedule in this model: leave out --search {how}")
    if how == "layers" and not search.takes_layers(method):
        raise CommandError(
            f"{method.name()} has no layers to rank: --search layers is for methods whose option `layers` says where they save"
        )
    if how == "withdrawal" and not isinstance(method, VTW):
        raise CommandError(f"--search withdrawal is the rule of vtw's authors for its layer: {method.name()} has none")
    if how in ("dial", "options") and not has_dial(method, host):
        raise CommandError(f"{method.name()} has no dial, so it cannot be turned until it spends less")
    try:
        if how == "withdrawal":
            search.by_withdrawal(cast(VTW, method), host, trials.fits, trials, cast(float, most))
        elif most is not None:
            trials(method)
            if how == "layers":
                search.ranked(method, host, trials.fits, trials, most)
            elif how == "dial":
                search.along_the_dial(method, host, trials.fits, trials, most)
            else:
                search.greedy(method, host, first or 0, trials, most)
        else:
            at_budget = _at(request, method, host, cost)
            if at_budget is not None:
                trials(at_budget)
            if how == "options":
                search.among_options(method, host, trials.fits, trials, lambda each: _at(request, each, host, cost))
            else:
                search.along_sigmoids(
                    method, host, first or 0, trials, lambda turn: _at(request, method, host, cost, turn)
                )
    except Enough:
        return how, True
    return how, False


def _at(
    request: Tune, method: Method, host: Host, cost: Cost, turn: Callable[[float], Method] | None = None
) -> Method | None:
    """A method's dial, or another one, at the budget; None: it has none, or the budget is out of its reach."""
    budget = cast(float, request.budget)
    if turn is None and not has_dial(method, host):
        return None
    dial = Dial(method, host, cost, turn)
    setting = dial.set(budget)
    if setting.cost > budget + TOLERANCE:  # a dial in steps: the next one below
        setting = dial.set(2 * budget - setting.cost)
    return setting.method if setting.reachable and setting.cost <= budget + TOLERANCE else None


def _best(request: Tune, given: Method, judged: Sequence[Trial]) -> Trial:
    """Of all that were judged."""
    name = given.name()
    if request.max_kl is None:
        if not judged:
            raise CommandError(
                f"no setting of {name} spends {request.budget:.3g} of the stock model's {request.by}: choose another --budget"
            )
        return min(judged, key=lambda trial: trial.kl)
    good = [trial for trial in judged if trial.kl <= request.max_kl]
    if not good:
        least = min((trial.kl for trial in judged), default=math.inf)
        if request.search == "withdrawal":
            raise CommandError(
                f"{name}: no layer that was tried, from layer {search.FIRST} on, has a KL of the first token within "
                f"{request.max_kl:.3g} nats: the least was {least:.3g}; raise --max-kl or --trials, or give more prompts"
            )
        raise CommandError(
            f"no setting of {name} that was tried has a KL within {request.max_kl:.3g}: the least was {least:.3g}; raise "
            "--max-kl or --trials"
        )
    listed = search.takes_layers(given) if request.search == "layers" else None

    def price(trial: Trial) -> tuple[float, int, float, bool]:
        # A mask saves nothing that is counted, so of what costs the same it is in as many layers as can be. Of equals rather
        # the one that says its layer than a default that leaves it to the model.
        layers = getattr(trial.method, listed) or () if listed else ()
        return trial.spent(request.by), -len(layers), trial.kl, trial.method == given

    return min(good, key=price)


def _compared(request: Tune, given: Method, best: Trial, host: Host, cost: Cost, how: str) -> list[Entry]:
    """What was found, the last, and what it is held against."""
    entries = [Entry(GIVEN, given)] if request.max_kl is not None else []
    same: Method | None = None
    if request.max_kl is None:
        same = _at(request, given, host, cost)
    elif how not in ("dial", "withdrawal") and has_dial(given, host):
        setting = Dial(given, host, cost).set(cost(best.method))
        same = setting.method if setting.reachable else None
    entries += [] if same is None else [Entry(SAME_COST, same)]
    return [*entries, Entry(FOUND, best.method)]
