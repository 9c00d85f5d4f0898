"""The solver alone: made-up methods with made-up costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import ADSC, IPCV, LUVC, OIM, VTW, DivPrune, DyCoke, FastV, Host, Method, Stride, ToMe, V2Drop
from foveate.dial import TOLERANCE, Dial
from foveate.errors import ConfigError
from foveate.method import Unit
from foveate.sums import Composed

HOST = Host(family="llava", blocks=4, layers=10, has_cls=True)
BUDGETS = (0.9, 0.5, 0.35, 0.25, 0.15, 0.1)


class Meter:
    """Cost of a method by formula, and how often it was asked."""

    def __init__(self, low: float = 0.0, high: float = 1.0, power: float = 1.0, steps: int | None = None) -> None:
        self.low, self.high, self.power, self.steps, self.asked = low, high, power, steps, 0

    def __call__(self, method: Method) -> float:
        assert isinstance(method, Stride)
        self.asked += 1
        assert method.keep is not None
        share = method.keep if self.steps is None else int(method.keep * self.steps) / self.steps
        return self.low + (self.high - self.low) * share**self.power


@given(st.floats(0, 0.4), st.floats(0.6, 1), st.floats(0.7, 3), st.floats(0.01, 1))
def test_a_smooth_dial(low: float, high: float, power: float, budget: float) -> None:
    meter = Meter(low, high, power)
    setting = Dial(Stride(), HOST, meter).set(budget)
    assert setting.reachable == (low - TOLERANCE <= budget <= high + TOLERANCE)
    assert setting.cost == meter(setting.method)
    nearest = min(max(budget, low), high)
    assert abs(setting.cost - nearest) <= TOLERANCE + 1e-9
    assert meter.asked < 30


@given(st.integers(1, 40), st.floats(0.01, 1))
def test_a_dial_in_steps_gives_the_nearest_one(steps: int, budget: float) -> None:
    meter = Meter(steps=steps)
    setting = Dial(Stride(), HOST, meter).set(budget)
    best = min(abs(step / steps - budget) for step in range(steps + 1))
    assert abs(setting.cost - budget) <= max(best, TOLERANCE) + 1e-9
    assert setting.reachable


def test_a_tie_goes_to_the_cheaper_one() -> None:
    assert Dial(Stride(), HOST, Meter(steps=10)).set(0.35).cost == pytest.approx(0.3)


def test_a_straight_line_takes_one_guess_for_each_budget() -> None:
    meter = Meter(0.2)
    dial = Dial(Stride(), HOST, meter)
    for budget in BUDGETS:
        setting = dial.set(budget)
        assert setting.reachable == (budget > 0.19)
        assert setting.cost == pytest.approx(max(budget, 0.2))
    assert meter.asked == 2 + 4


@settings(max_examples=15)  # each searches twelve times
@given(st.integers(2, 40), st.floats(0.5, 3), st.permutations(BUDGETS))
def test_other_budgets_do_not_matter(steps: int, power: float, order: list[float]) -> None:
    """Nor does their order: answers that are kept are to a setting."""
    dial = Dial(Stride(), HOST, Meter(0.1, power=power, steps=steps))
    for budget in order:
        alone = Dial(Stride(), HOST, Meter(0.1, power=power, steps=steps)).set(budget)
        assert dial.set(budget) == alone


def test_where_the_dial_was_does_not_matter() -> None:
    found = [Dial(Stride(keep=keep), HOST, Meter(power=2)).set(0.3) for keep in (0.0, 0.2, 1.0)]
    assert found[0] == found[1] == found[2]


@dataclass(frozen=True)
class Masks(Method):
    """Test only: a method that removes nothing."""

    unit: ClassVar[Unit] = "none"


def test_the_dial_is_keep() -> None:
    assert FastV(layer=3, ratio=0.2).with_keep(0.5) == FastV(keep=0.5, layer=3)
    assert VTW(layer=3).with_keep(0.5) == VTW(keep=0.5)
    assert V2Drop(layers=(1, 2), ratios=(0.3, 0.0)).with_keep(0.6) == V2Drop(layers=(1, 2), keep=0.6)
    assert LUVC(merge=0.5, schedule="halving").with_keep(0.6) == LUVC(keep=0.6, schedule="halving")
    assert (ToMe() + DivPrune()).with_keep(0.6) == Composed((ToMe(), DivPrune()), keep=0.6)
    assert replace(FastV(), positions="renumber").with_keep(0.2).positions == "renumber"
    for method in (Masks(), Masks() + Masks()):
        with pytest.raises(ConfigError, match="masks"):
            Dial(method, HOST, lambda method: 1.0)


def test_the_dial_begins_at_the_least() -> None:
    least = [(FastV(), 0.1), (FastV(layer=3), 0.3), (VTW(), 0), (ADSC(), 0), (ADSC(layers=(2, 5)), 0.2), (OIM(), 0.25)]
    least += [
        (ToMe(), 1 / 16),
        (IPCV(), 1 / 4),
        (DyCoke(), 0),
        (FastV() + FastV(layer=3), 0.2),
        (ToMe() + FastV(), 0.2 / 16),
    ]
    for method, share in least:
        assert method.least(HOST) == pytest.approx(share)
        assert method.with_keep(method.least(HOST)).sites(HOST)
