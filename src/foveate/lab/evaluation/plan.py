"""What is measured: the stock model, the bounds, and each method at each budget that it can spend."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, cast

from foveate.dial import Dial
from foveate.errors import ConfigError, FoveateError, UnsupportedSiteError, first_line
from foveate.lab import cautions
from foveate.lab.asker import Asker
from foveate.lab.checks import ANTIORACLE, BLIND, DENSE, ORACLE
from foveate.lab.evaluation.bounds import AntiOracle, Oracle
from foveate.lab.evaluation.request import Contest, Tasks
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError
from foveate.lab.words import options_by_method
from foveate.method import Host, Method, Positions
from foveate.methods import list_methods
from foveate.sums import Composed

#: What can be measured besides the methods; None: the stock model.
BOUNDS: dict[str, Method | None] = {DENSE: None, BLIND: None, ORACLE: Oracle(), ANTIORACLE: AntiOracle()}


@dataclass(frozen=True)
class Entry:
    """One line of the report.

    Attributes:
        label: unique together with the budget.
        method: what is attached, its dial in place; None: the stock model.
        budget: what it was to spend; None: it has no dial.
    """

    label: str
    method: Method | None = None
    budget: float | None = None

    @property
    def blind(self) -> bool:
        """The stock model, shown grey images."""
        return self.label == BLIND

    def __str__(self) -> str:
        return self.label if self.budget is None else f"{self.label} at {self.budget:.6g}"


@dataclass(frozen=True)
class Missed:
    """A budget that a method cannot spend: ``closest`` is the nearest that it can."""

    label: str
    budget: float
    closest: float


def contenders(
    request: Contest, asker: Asker, *, bounds: bool = True, words: int = 1
) -> tuple[dict[str, Method | None], list[str]]:
    """Label -> method, its dial not yet set, and notes on what was left out. The stock model is always the first.

    Args:
        request: which are asked for; none at all: that of the adapter, or everything that fits and needs no training.
        asker: the model.
        bounds: whether what is asked has evidence and answers, as bounds need.
        words: tokens of an answer at most.
    """
    names, options, described = request.methods, request.options, request.described
    notes: list[str] = []
    for name in names:
        if name in BOUNDS and name != DENSE and not bounds:
            raise CommandError(
                f"{name} needs the reference benchmark's evidence and answers, and here there are none: leave it out"
            )
    if not (names or described or options) and asker.trained is not None:
        described = (json.dumps(asker.trained.to_dict()),)
    if names or described:
        found = [*_named(names, options), *(method_from_words(None, None, [], text) for text in described)]
    elif options:
        raise CommandError(f"--option {options[0]!r} belongs to a method: say --method, too")
    elif isinstance(request, Tasks):
        raise CommandError("say what to measure: --method NAME, as often as you like (see `foveate methods`)")
    else:
        fit, notes = shipped(asker, words)
        found = [*(bound for bound in BOUNDS.values() if bound is not None and bounds), *fit]
    labelled: dict[str, Method | None] = {DENSE: None}
    if bounds and (BLIND in names or not (names or described)):
        labelled[BLIND] = None
    for method in found:
        if request.positions is not None:
            method = _positioned(method, cast(Positions, request.positions))
        check_fit(method, asker, words)
        name = label(method, asker.host, request.as_is)
        if name in labelled:
            why = "" if request.as_is else ": a method at a budget is the same wherever its dial was"
            raise CommandError(f"{name} is given twice{why}")
        labelled[name] = method
    cautions.say(asker.name, found, asker.host)
    return labelled, notes


def entries(
    contenders: dict[str, Method | None],
    budgets: Sequence[float],
    host: Host,
    cost: Callable[[Method], float],
    tell: Callable[[str, float], None],
) -> tuple[list[Entry], list[Missed]]:
    """Every contender at every budget; two that a dial in steps sets alike stay two, as their budgets differ.

    Without budgets, every contender as it is. ``cost`` is relative to the stock model's.
    """
    found: list[Entry] = []
    missed: list[Missed] = []
    for number, (name, method) in enumerate(contenders.items()):
        if method is None or not budgets or not has_dial(method, host):
            found.append(Entry(name, method))
            continue
        tell(f"finding the budgets of {name}", number / len(contenders))
        dial = Dial(method, host, cost)
        for budget in budgets:
            setting = dial.set(budget)
            if setting.reachable:
                found.append(Entry(name, setting.method, budget))
            else:
                missed.append(Missed(name, budget, setting.cost))
    return found, missed


def label(method: Method, host: Host, as_is: bool = False) -> str:
    """The name, and every option that is neither the default nor (unless ``as_is``) the dial: ``fastv(layer=4)``."""
    terms = "+".join(_label(term, host, as_is) for term in method.terms())
    return (
        f"({terms})(keep={method.keep:.6g})" if len(method.terms()) > 1 and as_is and method.keep is not None else terms
    )


def check_fit(method: Method, asker: Asker, words: int = 1) -> None:
    """Raise an error that says why ``method`` cannot be measured on this model, if so."""
    acting = [site for site in method.sites(asker.host) if site.action != "remember"]
    if words == 1 and all(site.at in ("decode", "cache") or site.into == "generated" for site in acting):
        raise UnsupportedSiteError(
            f"{method.name()} acts on the tokens that follow the first one of an answer, and the answers here have one"
        )
    asker.attach(method).remove()


def _named(names: Sequence[str], options: Sequence[str]) -> list[Method]:
    """Methods by name, with the options that belong to each."""
    names = [name for name in dict.fromkeys(names) if name not in (DENSE, BLIND)]
    plain = [name for name in names if name not in BOUNDS]
    own = dict(zip(plain, options_by_method(plain, options)))
    return [BOUNDS.get(name) or method_from_words(name, None, own[name], None) for name in names]


def shipped(asker: Asker, words: int) -> tuple[list[Method], list[str]]:
    """Every method of the registry that fits the model, with its defaults; and why the others do not.

    One with learned parts is left out: before they are trained, its choice means nothing.
    """
    found, notes = [], []
    for name, cls in list_methods().items():
        if cls.modules is not Method.modules:
            notes.append(
                f"left out: {name} has learned parts: `foveate train {name}` makes them, and --adapter takes the folder"
            )
            continue
        try:
            method = cls()
            check_fit(method, asker, words)
        except TypeError:
            notes.append(f"left out: {name} has options without a default, so it must be asked for")
        except FoveateError as error:
            notes.append(f"left out: {error}")
        except Exception as error:  # a mistake of another package's method; ours have tests
            notes.append(f"left out: {name}: {type(error).__name__}: {first_line(error)}")
        else:
            found.append(method)
    return found, notes


def _positioned(method: Method, positions: Positions) -> Method:
    """The method, and all parts of a sum, with another policy."""
    if isinstance(method, Composed):
        return replace(method, methods=tuple(_positioned(part, positions) for part in method.methods))
    return replace(method, positions=positions)


def has_dial(method: Method, host: Host) -> bool:
    """Whether it can be set to a budget."""
    try:
        least = method.least(host)
        one, other = (method.with_keep(keep).sites(host) for keep in (least + (1 - least) / 2, 1.0))
    except ConfigError:
        return False
    return one != other


def on_the_dial(method: Method, host: Host) -> set[str]:
    """The options that a budget turns."""
    return {"keep", *method.how_much} if has_dial(method, host) else set()


def _label(method: Method, host: Host, as_is: bool) -> str:
    hidden = set() if as_is else on_the_dial(method, host)
    own: dict[str, Any] = {}
    for f in fields(method):
        here = getattr(method, f.name)
        if f.name not in hidden and (f.default is MISSING or here != f.default):
            own[f.name] = here
    options = ", ".join(f"{name}={_short(value)}" for name, value in own.items())
    return method.name() + (f"({options})" if own else "")


def _short(value: Any) -> str:
    """A schedule of many layers fills no line; what it is stands in the JSON."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"#{hashlib.sha256(text.encode()).hexdigest()[:6]}"
