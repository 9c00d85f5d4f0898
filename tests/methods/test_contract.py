"""Every published method, and what is made of several, keeps the contract on two families that are built differently.

`make test-matrix` asks all families.
"""

from __future__ import annotations

import pytest
from contract import PROPERTIES, Property, keeping_everything_is_stock
from plans import FULL, PLANS


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("plan", PLANS)
def test_contract(family: str, plan: str, check: Property) -> None:
    check(family, PLANS[plan])


@pytest.mark.parametrize("full", FULL)
def test_keeping_everything_is_stock(family: str, full: str) -> None:
    keeping_everything_is_stock(family, FULL[full])
