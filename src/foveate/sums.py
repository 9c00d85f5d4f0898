"""Several methods as one: what ``a + b`` makes, and the ``keep`` that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import mul
from typing import Any

from foveate.errors import ConfigError
from foveate.method import Host, Method, Site
from foveate.schedule import Schedule, solve_power


@dataclass(frozen=True)
class Sum(Method):
    """A sum is a method that is several others at once, its `parts`.

    Its ``keep`` is for all of them: every part of unit ``tokens`` gets its shares to the one power at which the layers hold
    ``keep`` of the tokens on average; the others stay as they are. Without it each part has its own.
    """

    def parts(self) -> tuple[Method, ...]:
        raise NotImplementedError(f"{type(self).__name__} must say its parts")

    def sites(self, host: Host) -> Sequence[Site]:
        return [site for part in self.resolve(host).parts() for site in part.sites(host)]

    @property
    def across_images(self) -> bool:
        return any(part.across_images for part in self.parts())

    def resolve(self, host: Host) -> Method:
        return Composed(self.parts() if self.keep is None else _at_mean(self.parts(), self.keep, host))

    def least(self, host: Host) -> float:
        return _mean(_with_power(self.parts(), math.inf, host), host)


@dataclass(frozen=True)
class Composed(Sum):
    """A composed method is what ``a + b`` makes; at a shared site its parts act one after the other, in that order."""

    methods: tuple[Method, ...] = ()

    def __post_init__(self) -> None:
        if not self.methods:
            raise ConfigError("a sum of methods needs at least one")
        # A sum in a sum is several terms of the whole, unless they share a `keep` of their own.
        flat = tuple(term for each in self.methods for term in (each.terms() if each.keep is None else (each,)))
        object.__setattr__(self, "methods", flat)
        super().__post_init__()

    def parts(self) -> tuple[Method, ...]:
        return tuple(part for method in self.methods for part in method.parts())

    def terms(self) -> tuple[Method, ...]:
        return self.methods

    def resolve(self, host: Host) -> Method:
        """Resolve terms that are sums with a `keep` of their own, and then the `keep` of the whole."""
        parts = tuple(part for method in self.methods for part in method.resolve(host).parts())
        return Composed(parts if self.keep is None else _at_mean(parts, self.keep, host))

    def with_schedule(self, schedule: Schedule) -> Method:
        """Return the sum with another schedule for the part that follows one."""
        able = [i for i, part in enumerate(self.methods) if any(f.name == "schedule" for f in fields(part))]
        if len(able) != 1:
            names = ", ".join(self.methods[i].name() for i in able) or "none"
            raise ConfigError(f"a schedule is for exactly one part of a sum, and here {names} would follow it")
        (i,) = able
        paced = self.methods[i].with_schedule(schedule)
        return Composed((*self.methods[:i], paced, *self.methods[i + 1 :]))

    def to_dict(self) -> dict[str, Any]:
        keep = {} if self.keep is None else {"keep": self.keep}
        return {"method": "composed", "methods": [method.to_dict() for method in self.methods], **keep}

    def __repr__(self) -> str:
        """Write the sum with ``+``; one that ``+`` cannot write, as the call that makes it."""
        if len(self.methods) == 1 or self.positions != "keep":
            return super().__repr__()
        terms = " + ".join(map(repr, self.methods))
        return terms if self.keep is None else f"({terms}).with_keep({self.keep!r})"


# -- the keep of a sum ---------------------------------------------------------------------------------------------------


def _at_mean(parts: Sequence[Method], keep: float, host: Host) -> tuple[Method, ...]:
    """Give the shares of all parts that count tokens one power, so that a layer holds ``keep`` of these on average."""
    counting = [part for part in parts if part.unit == "tokens"]
    free = [part.name() for part in counting if part.cut is not None]
    if free:
        raise ConfigError(
            f"keep={keep:.4g} is for all parts of the sum together, and a threshold decides in {' and '.join(free)}: give each "
            "part its own keep or threshold"
        )
    if not counting:
        names = ", ".join(f"{part.name()} ({part.unit})" for part in parts)
        raise ConfigError(
            f"keep={keep:.4g} is a share of the visual tokens, and no part of the sum counts these: {names}"
        )
    if keep < _mean(_with_power(parts, math.inf, host), host) * (1 - 1e-9):  # cuts that may move earlier do
        parts = [_moved(part, keep, host) if part.unit == "tokens" else part for part in parts]
    least = _mean(_with_power(parts, math.inf, host), host)
    if keep < least * (1 - 1e-9):
        raise ConfigError(
            f"keep={keep:.4g} cannot be reached by {' + '.join(part.name() for part in parts)}: {least:.4g} is the least that "
            "they can leave; cut earlier, or keep more"
        )
    return _with_power(parts, solve_power(lambda t: _mean(_with_power(parts, t, host), host), keep), host)


def _moved(part: Method, keep: float, host: Host) -> Method:
    """Return a part with its cuts moved earlier, where they may and have to for ``keep``; any other as it is."""
    least = part.least(host)
    return part.with_keep(max(keep, least) if keep else 0.0) if least < part.shares(host).least(host.depth) else part


def _with_power(parts: Sequence[Method], t: float, host: Host) -> tuple[Method, ...]:
    return tuple(part.with_power(t, host) if part.unit == "tokens" else part for part in parts)


def _mean(parts: Sequence[Method], host: Host) -> float:
    """Return the mean share per layer that is left by all parts that count tokens."""
    curves = [part.shares(host).curve(host.depth) for part in parts if part.unit == "tokens"]
    return sum(reduce(mul, shares, 1.0) for shares in zip(*curves)) / host.depth
