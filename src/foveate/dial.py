"""Spend a given budget: the `keep` at which a method's measured cost is what was asked for.

Methods spend differently (tokens leave at once, late, or in stages; some also save the tower's work), so a comparison
at one budget in FLOPs or cache bytes turns the `keep` of every method to another place. `Dial` does that; `with_threshold`
finds the threshold that leaves a given share on average, where each image decides how many of its tokens reach it; and
`attention_changes` says which decoder layers attend as the one before them.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import nn

from foveate.errors import ConfigError
from foveate.handle import compress, host_of
from foveate.method import Host, M, Method, Site, Unit
from foveate.ops.divergence import jensen_shannon
from foveate.schedule import check_ratio
from foveate.tokens import Reduction, Scope, Tokens

#: A cost this near the budget is the budget.
TOLERANCE = 0.01
#: Dials are not turned finer than this.
FINEST = 1 / 512


@dataclass(frozen=True)
class Setting:
    """A method set to a budget.

    Attributes:
        method: with its dial in place.
        budget: the cost that was asked for.
        cost: the measured one.
        reachable: whether the budget lies within what the dial can do. (A dial that moves in steps may still be up to half
            a step off.)
    """

    method: Method
    budget: float
    cost: float
    reachable: bool


@dataclass(frozen=True)
class _Point:
    share: float
    method: Method
    cost: float


class Dial:
    """The dial of a method on a model, and the costs of all its places that were tried.

    Every budget is looked for from both ends, so its setting does not depend on which others were asked for before.
    """

    def __init__(
        self,
        method: Method,
        host: Host,
        cost: Callable[[Method], float],
        turn: Callable[[float], Method] | None = None,
    ) -> None:
        """Try both ends.

        Args:
            method: what to turn; where its dial is does not matter.
            host: facts about the model (`foveate.handle.host_of`).
            cost: measures a method, relative to the stock model. It must not fall as the share grows.
            turn: another dial than `keep`: share -> method.

        Raises:
            ConfigError: the method has no dial.
        """
        self._turn, self._host, self._cost = turn or method.with_keep, host, cost
        self._known: list[_Point] = []
        self._ends = [self._try(0.0 if turn else method.least(host)), self._try(1.0)]

    def set(self, budget: float) -> Setting:
        """Find the place whose cost is nearest to ``budget``; of two as near, the cheaper one."""
        points = list(self._ends)  # in order of share
        least, most = points[0].cost, points[-1].cost
        bisect = False  # interpolation is exact for smooth dials, bisection safe for those with steps: they take turns
        while least < budget < most and abs(_nearest(points, budget).cost - budget) > TOLERANCE:
            low, high = next(pair for pair in pairwise(points) if pair[1].cost > budget)
            if high.share - low.share <= FINEST:
                break
            part = 0.5 if bisect else (budget - low.cost) / (high.cost - low.cost)
            points.append(self._try(low.share + part * (high.share - low.share)))
            points.sort(key=lambda point: point.share)
            bisect = not bisect
        best = _nearest(points, budget)
        return Setting(best.method, budget, best.cost, least - TOLERANCE <= budget <= most + TOLERANCE)

    def _try(self, share: float) -> _Point:
        method = self._turn(share)
        alike = _decides(method, self._host)  # what a dial in steps sets alike costs the same
        same = next((point.cost for point in self._known if _decides(point.method, self._host) == alike), None)
        self._known.append(_Point(share, method, self._cost(method) if same is None else same))
        return self._known[-1]


def _nearest(points: Sequence[_Point], budget: float) -> _Point:
    return min(points, key=lambda point: (round(abs(point.cost - budget), 9), point.cost))


def _decides(method: Method, host: Host) -> tuple[list[Site], list[float | tuple[float, ...] | None]]:
    """Tell what decides how many tokens a method leaves: its sites, and thresholds."""
    return list(method.sites(host)), [part.cut for part in method.parts()]


# -- thresholds ----------------------------------------------------------------------------------------------------------

#: The place of the largest float32 among all of them: 0 is at 0, the next larger one at 1.
_LARGEST_FLOAT = 0x7F7FFFFF


def with_threshold(
    method: M, model: nn.Module, inputs: Sequence[Mapping[str, Any]], keep: float, tolerance: float = 0.005
) -> M:
    """Find the threshold at which the method leaves ``keep`` of its `unit`, on average over some prompts.

    Thresholds are bisected over all numbers, whatever the scale of the scores, so the prompts go through the model up to 33
    times; a dozen times are usual. A method whose sites have thresholds of their own (`Method.margins`) gets these one after
    another, each where all prompts together are left with what ``keep`` leaves there: the prompts go through the vision tower
    as often as there are sites.

    Args:
        method: one that has the option ``threshold``.
        model: as for `foveate.compress`; it is left as it was.
        inputs: for each prompt, or batch, the arguments of the model.
        keep: the mean share; where no threshold leaves that, the nearest share, which a warning says.
        tolerance: a mean so near to ``keep`` is good enough.

    Raises:
        ConfigError: the method has no such option, there is no prompt, or a forward of a prompt does not show what the unit
            counts (``decode``).
    """
    check_ratio("keep", keep)
    if "threshold" not in method.how_much or all(f.name != "threshold" for f in fields(method)):
        raise ConfigError(f"{method.name()} has no threshold to set: its options are {', '.join(_names(method))}")
    _check_inputs(inputs)
    unset: dict[str, Any] = {name: None for name in ("keep", *method.how_much) if hasattr(method, name)}
    if type(method).margins is not Method.margins:
        found = _site_by_site(replace(method, **unset), model, inputs, keep)
        nearest, token = _left(found, model, inputs)
    else:
        found, nearest, token = _bisected(replace(method, **unset), model, inputs, keep, tolerance)
    if abs(nearest - keep) > max(tolerance, token) + 1e-9:
        warnings.warn(
            f"no threshold of {method.name()} leaves keep={keep:.4g} of these prompts: {nearest:.4g} is the nearest, and set",
            stacklevel=2,
        )
    return found


def _bisected(
    method: M, model: nn.Module, inputs: Sequence[Mapping[str, Any]], keep: float, tolerance: float
) -> tuple[M, float, float]:
    """Return the method with one threshold, the share that it leaves, and how much of it a token is."""
    low, high = -_LARGEST_FLOAT, _LARGEST_FLOAT
    nearest, found, token = float("inf"), method, 0.0
    while high - low > 1 and abs(nearest - keep) > tolerance:
        middle = (low + high) // 2
        option: dict[str, Any] = {"threshold": _float_at(middle)}
        tried = replace(method, **option)
        left, token = _left(tried, model, inputs)
        if abs(left - keep) < abs(nearest - keep):
            nearest, found = left, tried
        low, high = (middle, high) if left > keep else (low, middle)
    return found, nearest, token


def _site_by_site(method: M, model: nn.Module, inputs: Sequence[Mapping[str, Any]], keep: float) -> M:
    """Return the method with a threshold for each of its sites in the vision tower, from the first to the last."""
    host = host_of(model)
    sites = method.with_keep(max(keep, method.least(host))).sites(host)
    cuts = [0.0] * len(sites)  # with which none leaves
    option: dict[str, Any] = {}
    for number, site in enumerate(sites):
        option = {"threshold": tuple(cuts)}
        whole, there, margins = _margins(replace(method, **option), number, model, inputs)
        cuts[number] = _cut(margins, there - round(site.shares[-1] * whole))
    option = {"threshold": tuple(cuts)}
    return replace(method, **option)


class _EnoughError(Exception):
    """The vision tower is done, and nobody asks for the rest of the forward."""


def _margins(
    method: Method, number: int, model: nn.Module, inputs: Sequence[Mapping[str, Any]]
) -> tuple[int, int, list[float]]:
    """Count the tokens of all inputs at the first site and at site ``number``; and their margins there, ascending."""
    counts, margins = [0, 0], [torch.empty(0)]
    first, here = (method.sites(host_of(model))[i] for i in (0, number))
    kind: Any = type(method)

    class Watching(kind):  # type: ignore[misc]
        """Acts as the method does, up to the site, and ends the forward before the language model."""

        def sites(self, host: Host) -> Sequence[Site]:
            return [*super().sites(host)[: number + 1], Site.entry()]

        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            if site.at == "lm_entry":
                raise _EnoughError
            for i, each in enumerate((first, here)):
                counts[i] += len(tokens) if each.layer == site.layer else 0
            if here.layer == site.layer:
                margins.append(self.margins(tokens, site).float().cpu())
            reduction: Reduction = super().reduce(tokens, site)
            return reduction

    Watching.__name__ = kind.__name__
    watching = Watching(**{f.name: getattr(method, f.name) for f in fields(method)})
    with compress(model, watching), torch.no_grad():
        for each in inputs:
            with suppress(_EnoughError):
                model(**each)
    return counts[0], counts[1], torch.cat(margins).sort().values.tolist()


def _check_inputs(inputs: Any) -> None:
    """Raise `ConfigError` unless these are the arguments of the model for at least one prompt."""
    if isinstance(inputs, Mapping):
        raise ConfigError(
            "inputs are of a single prompt: give a list, [inputs], with the arguments of each prompt or batch"
        )
    if not inputs:
        raise ConfigError("inputs: give at least one prompt")
    other = next((each for each in inputs if not isinstance(each, Mapping)), None)
    if other is not None:
        raise ConfigError(
            f"inputs has a {type(other).__name__}: expected the arguments of the model for each prompt, as the processor "
            "returns them"
        )


def _left(method: Method, model: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Measure the mean share that a method leaves of its unit, and how much of it a token of the smallest prompt is."""
    shares, tokens = [], []
    with compress(model, method) as handle, torch.no_grad():
        for each in inputs:
            model(**each)
            report = handle.report()
            shares.append(report.shares)
            tokens.append(report.visual_tokens)
    if any(method.unit not in found for found in shares):
        raise ConfigError(f"{method.name()}: a forward of a prompt does not show what the unit {method.unit!r} counts")
    return fmean(found[method.unit] for found in shares), 1 / max(min(tokens), 1)


def _float_at(place: int) -> float:
    """Return the float32 at a place among all of them, in ascending order."""
    (size,) = struct.unpack("f", struct.pack("I", abs(place)))
    return float(size if place >= 0 else -size)


def _cut(margins: Sequence[float], leave: int) -> float:
    """Return the threshold below which ``leave`` of the ascending ``margins`` are, or as many as there are."""
    if leave <= 0 or not margins:
        return 0.0
    if leave < len(margins):
        return margins[leave]
    return float(torch.nextafter(torch.tensor(margins[-1]), torch.tensor(torch.inf)))


def _names(method: Method) -> list[str]:
    return [f.name for f in fields(method)]


# -- layers that attend alike --------------------------------------------------------------------------------------------


def attention_changes(model: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Tell for each decoder layer how much its attention differs from that of the layer before, on average over some prompts.

    It is the Jensen-Shannon divergence, in nats, of what the last token of a prompt pays to the visual tokens, in the mean over
    heads; infinity for the first layer. Layers of a small one can reuse queries and keys:
    ``foveate.QCache(layers=tuple(i for i, change in enumerate(found) if change < 0.05))``.

    Args:
        model: as for `foveate.compress`; it is left as it was.
        inputs: for each prompt, or batch, the arguments of the model.
    """
    _check_inputs(inputs)
    found: dict[int, list[float]] = {}

    @dataclass(frozen=True)
    class Watching(Method):
        """Looks at the attention of every layer, and changes nothing."""

        unit: ClassVar[Unit] = "none"
        scope: ClassVar[Scope] = "sample"

        def sites(self, host: Host) -> Sequence[Site]:
            return [Site.skip(layer, "ffn", signals=("last_row",)) for layer in range(host.layers)]

        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            now, before = tokens.last_row.float().mean(-1), tokens.state.get("attention")
            tokens.state["attention"] = now
            if before is not None:
                found.setdefault(site.layer, []).extend(jensen_shannon(before, now, tokens.pool_counts).tolist())
            return Reduction(torch.arange(len(tokens), device=now.device), tokens.counts)

    layers = host_of(model).layers
    with compress(model, Watching()), torch.no_grad():
        for each in inputs:
            model(**each)
    return tuple(fmean(found[layer]) if layer in found else float("inf") for layer in range(layers))
