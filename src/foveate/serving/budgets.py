"""What a prompt asks for: ``mm_processor_kwargs={"foveate": {"keep": 0.3}}``, a budget of its own up to a limit that the server
has; or ``{"profile": "fast"}``, one of the methods that the server was started with beside its own. Where it asks for nothing,
the server may leave the budget to each image (`foveate.serving.detail`).

A budget says how many tokens stay. Where they leave, and so which layers have their own blocks, an engine sets up at its start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeGuard

from foveate.errors import ConfigError, FoveateError, InputError, nearest, shown
from foveate.method import Host, Method
from foveate.models import list_families
from foveate.serving.detail import Adaptive

if TYPE_CHECKING:
    from foveate.serving.plan import Plan

KEY = "foveate"


@dataclass(frozen=True)
class Choice:
    """What a prompt asks for.

    Attributes:
        keep: a budget; None: the server's.
        profile: a name; "": the server's own method.
    """

    keep: float | None = None
    profile: str = ""


#: of a prompt that asks for nothing
SERVERS = Choice()


@dataclass(frozen=True, eq=False)
class Budgets:
    """Plans of one method with any budget.

    Attributes:
        method, host, config: what they are made of.
        limit: the largest `keep` that a prompt may ask for.
        adaptive: the budgets of images whose prompts ask for nothing; None: the server's own.
        shared: as of the server's plan.
    """

    method: Method
    host: Host
    config: Any
    limit: float
    adaptive: Adaptive | None = None
    shared: tuple[int, ...] = ()

    def at(self, keep: float) -> Plan:
        """Return the plan with that budget."""
        return _plan(self, keep)

    def fits(self, keep: float, plan: Plan) -> None:
        """Raise `InputError` if a prompt with that budget would need what an engine with ``plan`` has not set up."""
        try:
            made = self.at(keep)
        except FoveateError as error:
            raise InputError(f"keep={keep:.4g} is not to be had: {error}") from None
        if made.own_layers != plan.own_layers or made.places != plan.places:
            raise InputError(
                f"with keep={keep:.4g} {plan.name} would act {_where(made)}, and this server is set up for it to act "
                f"{_where(plan)}: ask for a budget nearer to the server's"
            )


def check_limit(plan: Plan) -> None:
    """Raise `FoveateError` if the limit of a plan's budgets is none that a server can be set up for."""
    assert plan.budgets is not None
    limit: object = plan.budgets.limit
    if not _is_number(limit) or not plan.keep - 1e-9 <= limit <= 1:
        raise ConfigError(
            f'"limit" is {shown(limit)}, expected a number from {plan.keep:.4g}, what {plan.name} keeps here, to 1: the most '
            "that a prompt may ask for"
        )
    plan.budgets.fits(limit, plan)


def with_adaptive(plan: Plan, given: Any) -> Plan:
    """Return a plan that leaves budgets to images, as a server was told to with ``given``.

    Raises:
        FoveateError: it is no such thing, or some budget is none that the server can be set up for.
    """
    if plan.budgets is None:
        raise ConfigError('"adaptive" needs a "limit" beside it: the most that an image may keep')
    adaptive = Adaptive.read(given, plan.budgets.limit)
    for keep in adaptive.budgets:
        plan.budgets.fits(keep, plan)
    return replace(plan, budgets=replace(plan.budgets, adaptive=adaptive))


def of_picture(choice: Choice, plan: Plan, picture: Any) -> Choice:
    """Return what an image gets whose prompt asks for ``choice``: that, or a budget by its pixels."""
    if choice != SERVERS or plan.budgets is None or plan.budgets.adaptive is None:
        return choice
    return Choice(keep=plan.budgets.adaptive.keep(picture))


def asked(given: Any, plan: Plan) -> Choice:
    """Return what a prompt asks for, checked.

    Args:
        given: what ``mm_processor_kwargs`` has for us.
        plan: of the server.

    Raises:
        InputError: it is no such thing, more than the limit, or a profile that there is not.
    """
    if given is None:
        return SERVERS
    if not isinstance(given, dict):
        raise InputError(f'mm_processor_kwargs: "{KEY}" is {shown(given)}, expected an object such as {{"keep": 0.3}}')
    if unknown := sorted(map(str, given.keys() - {"keep", "profile"})):
        raise InputError(f'mm_processor_kwargs: "{KEY}" has no {shown(unknown[0])}; it has "keep" and "profile"')
    if len(given) > 1:
        raise InputError(
            f'mm_processor_kwargs: "{KEY}" has "keep" and "profile", and a profile has a budget: give one of them'
        )
    if "profile" in given:
        return _profile(given["profile"], plan)
    return _budget(given["keep"], plan) if "keep" in given else SERVERS


def _profile(name: Any, plan: Plan) -> Choice:
    if not plan.profiles:
        raise InputError(f'this server has no profiles: leave "{KEY}" out, or start it with --profile NAME=METHOD')
    if not isinstance(name, str) or name not in plan.profiles:
        near = nearest(name, plan.profiles) if isinstance(name, str) else ""
        raise InputError(
            f'mm_processor_kwargs: "profile" is {shown(name)}{near}; this server has {", ".join(plan.profiles)}'
        )
    return Choice(profile=name)


def _budget(keep: Any, plan: Plan) -> Choice:
    if plan.budgets is None:
        raise InputError(
            f'this server keeps {plan.keep:.4g} of every image: leave "{KEY}" out, or start it with a "limit" beside the method'
        )
    limit = plan.budgets.limit
    if not _is_number(keep) or not 0 < keep <= limit:
        raise InputError(
            f'mm_processor_kwargs: "keep" is {shown(keep)}, expected a number above 0, up to {limit:.4g}, the limit of this '
            "server"
        )
    plan.budgets.fits(keep, plan)
    return Choice(keep=float(keep))


def _is_number(x: object) -> TypeGuard[float]:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and -math.inf < x < math.inf


@lru_cache(maxsize=256)
def _plan(budgets: Budgets, keep: float) -> Plan:
    from foveate.serving.plan import make_plan

    family = list_families()[budgets.host.family]
    made = make_plan(budgets.method.with_keep(keep), budgets.host, family, budgets.config)
    return replace(made, shared=budgets.shared)


def _where(plan: Plan) -> str:
    layers = f" (before layer {', '.join(map(str, plan.own_layers))})" if plan.own_layers else ""
    return f"{', '.join(plan.places) or 'nowhere'}{layers}"
