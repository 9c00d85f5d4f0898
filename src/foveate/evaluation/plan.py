"""What is measured: the stock model, the bounds, and each method at each budget that it can spend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal

from foveate.compress import compress
from foveate.dial import Dial
from foveate.errors import ConfigError, FoveateError, UnsupportedSiteError
from foveate.evaluation.asking import answer
from foveate.evaluation.batches import probes
from foveate.evaluation.bounds import AntiOracle, Oracle
from foveate.evaluation.subject import Subject
from foveate.method import Composed, Host, Method, Positions
from foveate.methods import methods
from foveate.options import method_from_words, options_by_method
from foveate.reference.data import Sample
from foveate.terminal import CommandError

By = Literal["tokens", "flops"]

DENSE, BLIND = "dense", "blind"
#: What can be measured besides the methods; None: the stock model.
BOUNDS: dict[str, Method | None] = {DENSE: None, BLIND: None, "oracle": Oracle(), "antioracle": AntiOracle()}


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
        return self.label if self.budget is None else f"{self.label} at {self.budget:.3g}"


@dataclass(frozen=True)
class Missed:
    """A budget that a method cannot spend: ``closest`` is the nearest that it can."""

    label: str
    budget: float
    closest: float


def contenders(
    names: Sequence[str],
    options: Sequence[str],
    described: Sequence[str],
    positions: Positions | None,
    subject: Subject,
) -> tuple[dict[str, Method | None], list[str]]:
    """Label -> method, its dial not yet set, and notes on what was left out. The stock model is always the first.

    Args:
        names: of methods, of sums joined by ``+``, and of bounds; none at all: everything that fits.
        options: ``name=value``; with several methods ``method.name=value``.
        described: methods as JSON, or files of it.
        positions: for all methods, or None: what each says.
        subject: the model.
    """
    notes: list[str] = []
    if names or described:
        found = [*named(names, options), *(method_from_words(None, None, [], text) for text in described)]
    elif options:
        raise CommandError(f"--option {options[0]!r} belongs to a method: say --method, too")
    else:
        shipped, notes = _shipped(subject)
        found = [*(bound for bound in BOUNDS.values() if bound is not None), *shipped]
    labelled: dict[str, Method | None] = {DENSE: None}
    if BLIND in names or not (names or described):
        labelled[BLIND] = None
    for method in found:
        placed = method if positions is None else positioned(method, positions)
        check_fit(placed, subject)
        labelled[label(placed, subject.host)] = placed
    return labelled, notes


def entries(
    contenders: dict[str, Method | None],
    budgets: Sequence[float],
    by: By,
    subject: Subject,
    samples: Sequence[Sample],
    tell: Callable[[str, float], None],
) -> tuple[list[Entry], list[Missed]]:
    """Every contender at every budget; two that a dial in steps sets alike stay two, as their budgets differ."""
    cost = _cost(subject, samples, by)
    found: list[Entry] = []
    missed: list[Missed] = []
    for number, (name, method) in enumerate(contenders.items()):
        tell(f"finding the budgets of {name}", number / len(contenders))
        if method is None or not has_dial(method, subject.host):
            found.append(Entry(name, method))
            continue
        dial = Dial(method, subject.host, cost)
        for budget in budgets:
            setting = dial.set(budget)
            if setting.reachable:
                found.append(Entry(name, setting.method, budget))
            else:
                missed.append(Missed(name, budget, setting.cost))
    return found, missed


def label(method: Method, host: Host) -> str:
    """The name, and every option that is neither the default nor the dial: ``fastv(layer=4)``."""
    return "+".join(_label(part, host) for part in method.parts())


def check_fit(method: Method, subject: Subject) -> None:
    """Raise an error that says why ``method`` cannot be measured on this model, if so."""
    if all(site.at == "decode" for site in method.sites(subject.host)):
        raise UnsupportedSiteError(
            f"{method.name()} acts on the tokens that follow the first one of an answer, and the answers here have one"
        )
    compress(subject.model, method).remove()


def named(names: Sequence[str], options: Sequence[str]) -> list[Method]:
    """Methods by name, with the options that belong to each."""
    names = [name for name in dict.fromkeys(names) if name not in (DENSE, BLIND)]
    plain = [name for name in names if name not in BOUNDS]
    own = dict(zip(plain, options_by_method(plain, options)))
    return [BOUNDS.get(name) or method_from_words(name, None, own[name], None) for name in names]


def _shipped(subject: Subject) -> tuple[list[Method], list[str]]:
    """Every method that fits the model, with its defaults; and why the others do not."""
    found, notes = [], []
    for name, cls in methods().items():
        try:
            method = cls()
            check_fit(method, subject)
        except TypeError:
            notes.append(f"left out: {name} has options without a default, so it must be asked for")
        except FoveateError as error:
            notes.append(f"left out: {error}")
        else:
            found.append(method)
    return found, notes


def positioned(method: Method, positions: Positions) -> Method:
    """The method, and all parts of a sum, with another policy."""
    if isinstance(method, Composed):
        return replace(method, methods=tuple(positioned(part, positions) for part in method.methods))
    return replace(method, positions=positions)


def has_dial(method: Method, host: Host) -> bool:
    """Whether it can be set to a budget."""
    try:
        method.with_share(0.5, host)
    except ConfigError:
        return False
    return True


def _label(method: Method, host: Host) -> str:
    turned = [method.with_share(share, host) for share in (0.25, 0.75)] if has_dial(method, host) else [method] * 2
    own: dict[str, Any] = {}
    for f in fields(method):
        one, other, here = (getattr(m, f.name) for m in (*turned, method))
        if one == other and (f.default is MISSING or here != f.default):
            own[f.name] = here
    options = ", ".join(f"{name}={value}" for name, value in own.items())
    return method.name() + (f"({options})" if own else "")


def _cost(subject: Subject, samples: Sequence[Sample], by: By) -> Callable[[Method], float]:
    """Cost of a method over that of the stock model, measured on questions of every image layout."""
    fixed, varying = (
        [(subject.preparation.batch(few), weight) for few, weight in probes(samples, each)] for each in (1, 8)
    )

    def cost(method: Method) -> float:
        now = full = 0.0
        for batch, weight in fixed if all(part.fixed_budget for part in method.parts()) else varying:
            _, spent = answer(subject, batch, method)
            if spent is not None:
                now += weight * (spent.tokens if by == "tokens" else spent.flops)
                full += weight * (spent.full_tokens if by == "tokens" else spent.full_flops)
        return now / full

    return cost
