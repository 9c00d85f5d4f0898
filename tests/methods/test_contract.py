"""Every published method, and sums of them, keep the contract on two families that are built differently.

`make test-matrix` asks all families, and every property of every method.
"""

from __future__ import annotations

from collections.abc import Hashable

import pytest
import tiny
from contract import BY_KINDS, CORE, PROPERTIES, Property, keeping_everything_is_stock, turn
from matrix import structure
from plans import FULL, MORE
from plans import METHODS as USUAL

METHODS = USUAL | MORE

pytestmark = pytest.mark.families(*tiny.WHOLE)


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("plan", METHODS)
def test_contract(family: str, plan: str, check: Property) -> None:
    check(family, METHODS[plan])


@pytest.mark.parametrize("full", FULL)
def test_keeping_everything_is_stock(family: str, full: str) -> None:
    keeping_everything_is_stock(family, FULL[full])


#: the first plan of each method
FIRST = {type(method): plan for plan, method in reversed(METHODS.items())}


def of_new_kinds() -> set[str]:
    """Of the first plans those that ask the runtime for something that none before them asks for."""
    met: set[Hashable] = set()
    found = set()
    for plan in METHODS:
        if plan in FIRST.values() and not structure(METHODS[plan]) <= met:
            met |= structure(METHODS[plan])
            found.add(plan)
    return found


NEW = of_new_kinds()


def leaves_to_the_matrix(family: str, plan: str = "", check: Property | None = None, full: str = "") -> bool:
    """A plan of a new kind has what is at the core on both families; all else is by turns on the one or the other: what is at
    the core of other plans, and of the first plan of each method the rest, if it is no matter of kinds that others have."""
    if family not in tiny.WHOLE or plan in MORE:
        return True
    if check is None or (check in CORE and plan in NEW):
        return False
    runs = check in CORE or plan in (NEW if check in BY_KINDS else FIRST.values())
    return not runs or turn(check, list(METHODS).index(plan)) != family


def test_every_kind_is_asked_for_everything() -> None:
    """Whatever a method asks of the runtime, one that asks for it has every property."""
    for check in PROPERTIES:
        runs = {plan for plan in METHODS if not all(leaves_to_the_matrix(each, plan, check) for each in tiny.WHOLE)}
        asked = {kind for plan in runs for kind in structure(METHODS[plan])}
        assert {kind for plan in FIRST.values() for kind in structure(METHODS[plan])} <= asked
