"""Every kind of site, signal and answer keeps the contract on families of every structure.

`make test-matrix` asks all families, of all of it.
"""

from __future__ import annotations

import pytest
import tiny
from contract import CORE, PROPERTIES, Property, keeping_everything_is_stock
from probes.synthetic import EVERYTHING, PROBES


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("probe", PROBES)
def test_probe(family: str, probe: str, check: Property) -> None:
    check(family, PROBES[probe])


def leaves_to_the_matrix(family: str, probe: str = "", check: Property | None = None) -> bool:
    """Two families have all of it. Others of `STRUCTURES` have every probe with what is at the core and a fourth of the rest,
    and every property with a fourth of the probes; and the families beside them one probe, with what is at the core."""
    if family in tiny.WHOLE or check is None:
        return False
    if family not in tiny.STRUCTURES:
        return probe != "tower and decoder" or check not in CORE
    return check not in CORE and (list(PROBES).index(probe) + PROPERTIES.index(check)) % 4 > 0


def test_keeping_everything_is_stock(family: str) -> None:
    keeping_everything_is_stock(family, EVERYTHING)
