"""Every published method, and sums of them, keep the contract on two families that are built differently.

`make test-matrix` asks all families.
"""

from __future__ import annotations

import pytest
import tiny
from contract import CORE, PROPERTIES, Property, keeping_everything_is_stock
from plans import FULL, METHODS


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("plan", METHODS)
def test_contract(family: str, plan: str, check: Property) -> None:
    check(family, METHODS[plan])


@pytest.mark.parametrize("full", FULL)
def test_keeping_everything_is_stock(family: str, full: str) -> None:
    keeping_everything_is_stock(family, FULL[full])


#: the first plan of each method
FIRST = {type(method): plan for plan, method in reversed(METHODS.items())}


def leaves_to_the_matrix(family: str, plan: str = "", check: Property | None = None, full: str = "") -> bool:
    """Other options of a method than those of its first plan are asked for what is at the core alone."""
    if family not in tiny.WHOLE:
        return True
    return bool(plan) and plan not in FIRST.values() and check not in CORE
