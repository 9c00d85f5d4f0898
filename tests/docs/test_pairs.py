"""The site's table of methods and families says what the matrix of tests runs."""

from __future__ import annotations

import re

import matrix
import pairs
import pytest
import tiny

import foveate
from foveate import FoveateError

METHODS = {name: cls() for name, cls in foveate.list_methods().items()}


def test_every_pair_has_an_answer() -> None:
    assert set(pairs.pairs()) == set(foveate.list_families())
    assert all(set(row) == set(METHODS) for row in pairs.pairs().values())


#: What is said of layers and blocks that the paper's place falls on in a deep model, and need not in a tiny one.
OF_DEPTH = re.compile("in this model use layer|rows before block")


@pytest.mark.parametrize("name", METHODS)
def test_the_table_leaves_out_what_the_tests_leave_out(name: str) -> None:
    """What the table gives without options is run; what the tests are not asked for has a sentence there."""
    kinds = matrix.kinds_of(METHODS[name])
    for family in tiny.FAMILIES:
        pair = pairs.pairs()[family][name]
        if matrix.refused(family, kinds):
            assert pair.sentence, f"the tests leave out {name} on {family}, and the table gives it"
        elif pair.options is None and not OF_DEPTH.search(pair.sentence):
            pytest.fail(f"the tests run {name} on {family}, and the table says: {pair.sentence}")


def leaves_to_the_matrix(family: str = "", name: str = "") -> bool:
    """That the table is what the code says is asked of all families (`test_site`), and what models say of each structure."""
    return bool(family) and family not in (*tiny.STRUCTURES, *tiny.SIBLINGS)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_the_table_refuses_is_refused(family: str) -> None:
    """With the same words, but for the depth, on the tiny model; and nothing else is."""
    model = tiny.model(family)
    for name, pair in pairs.pairs()[family].items():
        said = ""
        try:
            foveate.compress(model, METHODS[name]).remove()
        except FoveateError as error:
            said = str(error)
        if not pair.sentence:
            assert not said
        elif pair.options is None and (said or not OF_DEPTH.search(pair.sentence)):
            words, _, _ = pair.sentence.partition("in this model use layer")
            assert re.search(re.sub(r"\d+", r"\\d+", re.escape(words)), said)


def test_the_table_shows_them() -> None:
    table = pairs.table()
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| `")}
    assert set(rows) == {f"`{family}`" for family in foveate.list_families()}
    assert "✓" in rows["`llava`"]
    assert "–" in rows["`ovis2`"], "its tower takes images of one size only"
    assert "`layer=4`" in rows["`qwen3_5`"]
    notes = re.findall(r"^(\d+)\. ", table, re.M)
    assert set(re.findall(r"<sup>(\d+)</sup>", table)) == set(notes)
