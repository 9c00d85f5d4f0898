"""Schedules: how many tokens are left at each depth."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from foveate.errors import ConfigError
from foveate.schedule import SCHEDULES, Schedule

names = st.sampled_from(sorted(SCHEDULES))
named = Schedule.named


def test_halving_at_the_quarters() -> None:
    assert named("halving", 28).stages == ((7, 0.5), (14, 0.25), (21, 0.125), (27, 0.0))
    assert named("halving", 8).curve(8) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0]
    assert named("halving", 36).layers == (9, 18, 27, 35)
    assert named("halving", 36).ratios == (0.5, 0.5, 0.5, 0.0)
    assert named("halving", 28).mean(28) == pytest.approx(0.464, abs=1e-3)


def test_linear() -> None:
    assert named("linear", 5, 1).curve(5) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert named("linear", 7, 3).curve(7) == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0])


def test_early() -> None:
    assert named("early", 10).stages == ((0, 0.5), (9, 0.0))
    assert named("early", 28, 23).stages == ((0, 0.5), (23, 0.0))
    assert named("early", 10, 9).stages == ((0, 0.5), (9, 0.0))


def test_cuts() -> None:
    assert Schedule.cuts((4, 1), 0.5).stages == ((1, 0.5), (4, 0.25))
    assert Schedule.cuts((3, 17, 22), (0.5, 0.5, 0.0)).stages == ((3, 0.5), (17, 0.25), (22, 0.0))
    assert Schedule.scaled((3, 17, 22), (0.5, 0.5, 0.0), of=32, to=4, first=1).stages == ((1, 0.5), (2, 0.25), (3, 0.0))
    assert Schedule.scaled((3, 17, 22), (0.5, 0.5, 0.0), of=32, to=2, first=1).stages == ((1, 0.0),)


# -- a schedule set to a mean -------------------------------------------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int]:
    """A schedule with shares of 0 and 1 among others, and the depth of a model that has its layers."""
    depth = draw(st.integers(1, 40))
    layers = draw(st.lists(st.integers(0, depth - 1), min_size=1, max_size=5, unique=True))
    ratios = draw(
        st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0.01, 1), min_size=len(layers), max_size=len(layers))
    )
    return Schedule.cuts(layers, ratios), depth


@given(schedules(), st.floats(0, 1))
def test_at_a_mean(drawn: tuple[Schedule, int], keep: float) -> None:
    schedule, depth = drawn
    if keep < schedule.least(depth) - 1e-6:
        with pytest.raises(ConfigError, match=f"{schedule.least(depth):.4g} is the least"):
            schedule.at_mean(keep, depth)
        return
    assume(keep >= schedule.least(depth))
    found = schedule.at_mean(keep, depth)
    assert found.mean(depth) == pytest.approx(keep, abs=1e-6)
    assert set(found.layers) <= set(schedule.layers)


def test_one_cut_by_its_formula_and_several_by_one_power() -> None:
    assert Schedule(((2, 0.9),)).at_mean(0.5, 32).stages == ((2, pytest.approx(14 / 30)),)
    drops = Schedule(((3, 0.5), (17, 0.25), (22, 0.0))).at_mean(0.5, 32)
    (_, first), (_, second), (_, last) = drops.stages
    assert (second, last) == (pytest.approx(first**2), 0.0)
    assert 3 + 14 * first + 5 * second == pytest.approx(16)


def test_above_what_a_withdrawal_leaves_it_withdraws_less() -> None:
    drops = Schedule(((1, 0.5), (6, 0.0)))
    assert drops.at_mean(6 / 8, 8).stages == ((1, pytest.approx(1.0)), (6, pytest.approx(0.0, abs=1e-9)))
    assert drops.at_mean(7 / 8, 8).stages == ((1, 1.0), (6, pytest.approx(0.5)))
    assert drops.at_mean(1.0, 8).stages == ((1, 1.0), (6, 1.0))


def test_layers_move_earlier_in_proportion() -> None:
    drops = Schedule(((4, 0.5), (12, 0.25), (20, 0.0)))
    assert drops.earlier(0.125, 32) == drops
    assert drops.earlier(0.1, 32).layers == (1, 4, 8)  # 3.2 layers' worth: the four before the first cut may be 1.6
    assert drops.earlier(0.01, 32, first=1).stages == ((1, 0.0),)


@given(names, st.integers(2, 80), st.none() | st.integers(1, 100), st.floats(0, 1))
def test_every_schedule_falls_to_zero(name: str, layers: int, every: int | None, keep: float) -> None:
    assume(every is None or every < layers)
    schedule = named(name, layers, every)
    assert all(0 <= layer < layers for layer in schedule.layers)
    assert schedule.stages[-1][1] == 0
    least = schedule.least(layers)
    here, steeper = (schedule.at_mean(max(k, least), layers).curve(layers) for k in (keep, keep / 2))
    assert all(0 <= low <= high + 1e-6 for low, high in zip(steeper, here))


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ([(1, 0.5), (2, 0.6)], "grows from 0.5 to 0.6 at layer 2"),
        ([(2, 0.5), (1, 0.4)], "ascending"),
        ([(2, 0.5), (2, 0.4)], "ascending"),
        ([(-1, 0.5)], "negative"),
        ([(1, 1.5)], "ratio"),
        ([(1, float("nan"))], "ratio"),
    ],
)
def test_bad_stages(stages: list[tuple[int, float]], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Schedule(tuple(stages))


def test_bad_names_and_depths() -> None:
    with pytest.raises(ConfigError, match="early, halving, linear"):
        named("cosine", 12)
    with pytest.raises(ConfigError, match="at least two decoder layers"):
        named("halving", 1)
    for every in (0, 12):
        with pytest.raises(ConfigError, match="from 1 to 11"):
            named("linear", 12, every)
