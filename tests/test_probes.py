"""Every kind of site, signal and answer keeps the contract on families of every structure.

`make test-matrix` asks all families, of all of it.
"""

from __future__ import annotations

import pytest
import tiny
from contract import CORE, PROPERTIES, Property, keeping_everything_is_stock, turn
from probes.synthetic import EVERYTHING, PROBES


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("probe", PROBES)
def test_probe(family: str, probe: str, check: Property) -> None:
    check(family, PROBES[probe])


BESIDE = [family for family in tiny.FAMILIES if family not in tiny.STRUCTURES]


@pytest.mark.parametrize("check", CORE)
@pytest.mark.parametrize("family", BESIDE)
def test_families_beside_these(family: str, check: Property) -> None:
    """One probe, with what is at the core."""
    check(family, PROBES["tower and decoder"])


def leaves_to_the_matrix(family: str, probe: str = "", check: Property | None = None) -> bool:
    """Two of `STRUCTURES` have every probe with what is at the core, and the rest by turns. The others have every probe with
    a third of the core, and an eighth of the probes with the rest."""
    if check is None or not probe or family not in tiny.STRUCTURES:
        return bool(probe)
    number = list(PROBES).index(probe)
    if check in CORE:
        turns = (number + tiny.STRUCTURES.index(family)) % len(CORE)
        return family not in tiny.WHOLE and CORE.index(check) != turns
    if family in tiny.WHOLE:
        return turn(check, number) != family
    return (number + PROPERTIES.index(check)) % 8 > 0


@pytest.mark.families(*tiny.FAMILIES)
def test_keeping_everything_is_stock(family: str) -> None:
    keeping_everything_is_stock(family, EVERYTHING)
