"""Spend a given budget: the `keep` at which a method's measured cost is what was asked for.

Methods spend differently (tokens leave at once, late, or in stages; some also save the tower's work), so a comparison
at one budget in FLOPs or cache bytes turns the `keep` of every method to another place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from foveate.method import Host, Method

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
        """The place whose cost is nearest to ``budget``; of two as near, the cheaper one."""
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
        sites = method.sites(self._host)  # what a dial in steps sets alike costs the same
        same = next((point.cost for point in self._known if point.method.sites(self._host) == sites), None)
        self._known.append(_Point(share, method, self._cost(method) if same is None else same))
        return self._known[-1]


def _nearest(points: Sequence[_Point], budget: float) -> _Point:
    return min(points, key=lambda point: (round(abs(point.cost - budget), 9), point.cost))
