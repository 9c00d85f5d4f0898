"""What docs/fidelity-to-papers.md says of the methods is what their docstrings and their tests say."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest

from foveate.methods import own_methods

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "fidelity-to-papers.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)


def test_a_reconstruction_is_called_one_in_its_first_sentence() -> None:
    """In that of its class, which `foveate methods` prints, and in that of its file, which README.md has."""
    listed = re.search(r"^Reconstructions, [^:]*: (.*?)\. They", PAGE, re.M | re.S)
    assert listed
    expected = set(re.findall(r"`(\w+)`", listed[1]))
    for said in (inspect.getdoc, lambda cls: inspect.getdoc(sys.modules[cls.__module__])):
        found = {
            cls.__name__ for cls in own_methods().values() if "reconstruction" in str(said(cls)).partition("\n")[0]
        }
        assert found == expected


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_numbers_of_our_own_or_a_plain_loop(row: str) -> None:
    assert row.lower() in own_methods()
    tests = (HERE / f"test_{row.lower()}.py").read_text()
    assert re.search(r"^def test_\w*(golden|loop)", tests, re.M)
