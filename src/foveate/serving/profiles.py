"""Profiles: other methods, or the same one with other options, that prompts of a server may ask for by name.

They share an engine, whose decoder has blocks of its own from every layer on before which any of them drops tokens. A prompt
of a profile that drops none there has as many tokens in these layers as before them, which costs it nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from foveate.errors import ConfigError, FoveateError, shown
from foveate.method import Host, Method, Site, Unit
from foveate.methods import method_from_dict
from foveate.serving.budgets import SERVERS, Choice
from foveate.serving.plan import TRIAL, Plan

NONE = "none"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")


@dataclass(frozen=True)
class Nothing(Method):
    """The stock model, as a profile: ``none``."""

    unit: ClassVar[Unit] = "none"

    @property
    def idle(self) -> bool:
        return True

    def sites(self, host: Host) -> Sequence[Site]:
        return []

    @classmethod
    def name(cls) -> str:
        return NONE


def with_profiles(plan: Plan, asked: Any, plan_of: Callable[[Method], Plan]) -> Plan:
    """Return a server's plan with those of its profiles.

    Args:
        plan: of the server's own method.
        asked: name -> method as plain data, or ``none``.
        plan_of: makes a plan of a method.

    Raises:
        FoveateError: it is no such thing, or a method that cannot be served.
    """
    if not isinstance(asked, Mapping) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in asked):
        raise ConfigError(
            f'"profiles" is {shown(asked)}, expected an object such as {{"fast": {{"method": "luvc", "keep": 0.3}}}}, whose '
            "names are of letters, digits, -, _ and ."
        )
    made = {name: _made(name, asked[name], plan_of) for name in sorted(asked)}
    shared = tuple(sorted({layer for each in (plan, *made.values()) for layer in each.own_layers}))
    made = {name: replace(each, shared=shared) for name, each in made.items()}
    budgets = None if plan.budgets is None else replace(plan.budgets, shared=shared)
    return replace(plan, budgets=budgets, profiles=made, shared=shared)


def most_asked(plan: Plan) -> dict[str, Any]:
    """Return what a prompt says to leave as much of its images before the language model as any may; {}: nothing does."""
    found: list[tuple[dict[str, Any], Choice]] = [({}, SERVERS)]
    if plan.budgets is not None:
        found.append(({"keep": plan.budgets.limit}, Choice(keep=plan.budgets.limit)))
    found += [({"profile": name}, Choice(profile=name)) for name in plan.profiles]
    return max(found, key=lambda each: sum(plan.entry_counts(replace(TRIAL, choice=each[1]))))[0]


def _made(name: str, asked: Any, plan_of: Callable[[Method], Plan]) -> Plan:
    try:
        return plan_of(Nothing() if asked in (None, NONE) else method_from_dict(asked))
    except FoveateError as error:
        raise ConfigError(f"profile {name}: {error}") from None
