"""The search, and the check of what it found on prompts that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from foveate.dial import TOLERANCE, Dial
from foveate.lab.evaluation import statistics
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.fidelity.forced import Heard
from foveate.lab.evaluation.fidelity.lines import Line, kls
from foveate.lab.evaluation.fidelity.measuring import identity_of, listen, prepare
from foveate.lab.evaluation.fidelity.meter import Meter
from foveate.lab.evaluation.fidelity.prompts import Prompt, grouped
from foveate.lab.evaluation.fidelity.stock import Stock
from foveate.lab.evaluation.plan import Entry, check_fit, has_dial
from foveate.lab.evaluation.protocol import Tell
from foveate.lab.evaluation.statistics import Share
from foveate.lab.evaluation.store import Store, check_folder, file_name
from foveate.lab.evaluation.tune import search
from foveate.lab.evaluation.tune.goal import Request, asking, check
from foveate.lab.evaluation.tune.trials import Enough, Trial, Trials
from foveate.lab.terminal import CommandError
from foveate.method import Host, Method
from foveate.methods import method_from_dict

GIVEN, SAME_COST, FOUND = "given", "given, at this cost", "found"
Cost = Callable[[Method], float]


@dataclass(frozen=True)
class Tuned:
    """What came out.

    Attributes:
        request: what was looked for.
        model: its name or folder; ``identity``: as in the header of every file.
        search: how.
        found: what was found.
        trials: how many settings were judged; ``exhausted``: the search wanted to judge more.
        calibration, held_out: what was given and what was found (the last), on the prompts of the search and on the others.
        gain: KL of what was given, at this cost, less that of what was found, on the prompts held out; None: nothing to
            compare.
    """

    request: Request
    model: str
    identity: dict[str, Any]
    search: str
    found: Method
    trials: int
    exhausted: bool
    calibration: tuple[Line, ...]
    held_out: tuple[Line, ...]
    gain: Share | None

    @property
    def lost(self) -> bool:
        """Whether what was given is better, at the same cost, on prompts that the search has not seen."""
        return self.gain is not None and self.gain.high < 0

    @property
    def method(self) -> Method:
        """The one to use."""
        return method_from_dict(self.held_out[-2].method) if self.lost else self.found


def tune(request: Request, tell: Tell) -> Tuned:
    """Search, or go on searching, and check.

    Raises:
        FoveateError: something in the request is wrong, or no setting is what was asked for.
    """
    check(request)
    if (written := request.out / "method.json").exists() and not (request.out / "trials.jsonl").exists():
        raise CommandError(f"{str(written)!r} is there already, and not from a search: choose another --out")
    stock, prompts = prepare(asking(request), tell)
    apart = round(len(prompts) * request.held_out)
    if not 0 < apart < len(prompts):
        raise CommandError(
            f"with {request.held_out:.3g} of {len(prompts)} prompts held out, one side has none: give more prompts"
        )
    seen, unseen = prompts[apart:], prompts[:apart]
    check_fit(request.method, stock, request.own.new_tokens)
    goal = {name: getattr(request, name) for name in ("max_kl", "budget", "by", "search", "trials", "held_out", "seed")}
    header = {**identity_of(asking(request), stock, prompts), "goal": goal, "given": request.method.to_dict()}
    check_folder(request.out / "answers", header)
    batches, length = grouped(seen, request.own.batch), request.own.new_tokens
    trials = Trials(stock, batches, length, request.out / "trials.jsonl", header, request.trials, tell)
    costs = Costs(Meter(stock, seen, request.own.batch, length), request.out / "costs.jsonl", header)

    def cost(method: Method) -> float:
        return costs(method).share(request.by)

    how, exhausted = _search(request, stock.host, trials, cost)
    best = _best(request, list(trials.judged.values()))
    entries = _compared(request, best, stock.host, cost, how)
    on_seen = _heard(request, stock, header, entries, seen, "calibration", tell)
    on_unseen = _heard(request, stock, header, entries, unseen, "held-out", tell)
    known = {entry.label: heard for entry, heard in on_unseen.items()}
    gain = statistics.average(kls(known[SAME_COST]) - kls(known[FOUND])) if SAME_COST in known else None
    return Tuned(
        request,
        stock.name,
        header,
        how,
        best.method,
        len(trials.judged),
        exhausted,
        tuple(Line.of(*each) for each in on_seen.items()),
        tuple(Line.of(*each) for each in on_unseen.items()),
        gain,
    )


def _search(request: Request, host: Host, trials: Trials, cost: Cost) -> tuple[str, bool]:
    """How was searched, and whether there was more to judge than may be. What was given is always judged, too."""
    method, most = request.method, request.max_kl
    first = search.takes_schedule(method, host, trials.fits)
    how = request.search
    if how == "auto":
        how = ("dial" if first is None else "greedy") if most is not None else "options" if first is None else "sigmoid"
    if how in ("greedy", "sigmoid") and first is None:
        raise CommandError(f"{method.name()} follows no schedule in this model: leave out --search {how}")
    if how in ("dial", "options") and not has_dial(method, host):
        raise CommandError(f"{method.name()} has no dial, so it cannot be turned until it spends less")
    try:
        if most is not None:
            trials(method)
            if how == "dial":
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
    request: Request, method: Method, host: Host, cost: Cost, turn: Callable[[float], Method] | None = None
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


def _best(request: Request, judged: Sequence[Trial]) -> Trial:
    """Of all that were judged."""
    name = request.method.name()
    if request.max_kl is None:
        if not judged:
            raise CommandError(
                f"no setting of {name} spends {request.budget:.3g} of the stock model's {request.by}: choose another --budget"
            )
        return min(judged, key=lambda trial: trial.kl)
    good = [trial for trial in judged if trial.kl <= request.max_kl]
    if not good:
        least = min(trial.kl for trial in judged)
        raise CommandError(
            f"no setting of {name} that was tried has a KL within {request.max_kl:.3g}: the least was {least:.3g}; raise "
            "--max-kl or --trials"
        )
    # Of equals rather the one that says its layer than a default that leaves it to the model.
    return min(good, key=lambda trial: (trial.spent(request.by), trial.kl, trial.method == request.method))


def _compared(request: Request, best: Trial, host: Host, cost: Cost, how: str) -> list[Entry]:
    """What was found, the last, and what it is held against."""
    entries = [Entry(GIVEN, request.method)] if request.max_kl is not None else []
    same: Method | None = None
    if request.max_kl is None:
        same = _at(request, request.method, host, cost)
    elif how != "dial" and has_dial(request.method, host):
        setting = Dial(request.method, host, cost).set(cost(best.method))
        same = setting.method if setting.reachable else None
    entries += [] if same is None else [Entry(SAME_COST, same)]
    return [*entries, Entry(FOUND, best.method)]


def _heard(
    request: Request,
    stock: Stock,
    header: dict[str, Any],
    entries: Sequence[Entry],
    prompts: Sequence[Prompt],
    part: str,
    tell: Tell,
) -> dict[Entry, list[Heard]]:
    """What the entries hear of these prompts."""
    folder = request.out / "answers"
    stores = {}
    for entry in entries:
        assert entry.method is not None
        about = {**header, "part": part, "entry": entry.label, "method": entry.method.to_dict()}
        stores[entry] = Store(folder / file_name(f"{entry.label} {part}", None), about, Heard)
    listen(stock, grouped(prompts, request.own.batch), stores, request.own.new_tokens, tell)
    return {entry: [store.records[prompt.id] for prompt in prompts] for entry, store in stores.items()}
