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


def _decides(method: Method, host: Host) -> tuple[list[Site], list[float | None]]:
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
    times; a dozen times are usual.

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
    low, high = -_LARGEST_FLOAT, _LARGEST_FLOAT
    nearest, found, token = float("inf"), method, 0.0
    while high - low > 1 and abs(nearest - keep) > tolerance:
        middle = (low + high) // 2
        tried = replace(method, **{**unset, "threshold": _float_at(middle)})
        left, token = _left(tried, model, inputs)
        if abs(left - keep) < abs(nearest - keep):
            nearest, found = left, tried
        low, high = (middle, high) if left > keep else (low, middle)
    if abs(nearest - keep) > max(tolerance, token) + 1e-9:
        warnings.warn(
            f"no threshold of {method.name()} leaves keep={keep:.4g} of these prompts: {nearest:.4g} is the nearest, and set",
            stacklevel=2,
        )
    return found


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


def _names(method: Method) -> list[str]:
    return [f.name for f in fields(method)]


# -- layers that attend alike --------------------------------------------------------------------------------------------


def attention_changes(model: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Tell for each decoder layer how much its attention differs from that of the layer before, on average over some prompts.

    It is the Jensen-Shannon divergence, in nats, of what the last token of a prompt pays to the visual tokens, in the mean over
    heads; infinity for the first layer. Layers of a small one can reuse queries and keys (`foveate.QCache`).

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
