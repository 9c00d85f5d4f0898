"""The repr of a method is the call that makes it, with what differs from the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from plans import METHODS

import foveate
from foveate import ADSC, IPCV, LUVC, DivPrune, FastV, Method, Stride, ToMe
from foveate.sums import Composed

NAMES: dict[str, Any] = {cls.__name__: cls for cls in (*foveate.list_methods().values(), Composed)}
SUMS = {
    "one": Composed((FastV(),)),
    "one with keep": Composed((FastV(),), keep=0.5),
    "renumbered": Composed((FastV(positions="renumber"), Stride()), positions="renumber"),
    "keep of all": (ToMe() + FastV()).with_keep(0.5),
    "sum with keep in a sum": (ToMe() + FastV()).with_keep(0.5) + IPCV(),
    "keep of that": ((ToMe() + FastV()).with_keep(0.5) + IPCV()).with_keep(0.25),
}


@pytest.mark.parametrize("method", [*METHODS.values(), *SUMS.values()], ids=[*METHODS, *SUMS])
def test_a_repr_makes_an_equal_method(method: Method) -> None:
    assert eval(repr(method), NAMES) == method


def test_what_is_as_by_default_is_left_out() -> None:
    assert repr(FastV()) == "FastV()"
    assert repr(FastV(keep=0.5)) == "FastV(keep=0.5)"
    assert repr(LUVC(schedule="halving")) == "LUVC(schedule='halving')"
    assert repr(DivPrune(keep=0.75) + FastV(layer=3)) == "DivPrune(keep=0.75) + FastV(layer=3)"
    assert repr((ADSC() + FastV()).with_keep(0.25)) == "(ADSC() + FastV()).with_keep(0.25)"


@dataclass(frozen=True)
class Wanting(Method):
    """A method whose option has no default."""

    block: int


def test_an_option_without_a_default_is_always_shown() -> None:
    assert repr(Wanting(0)) == "Wanting(block=0)"
