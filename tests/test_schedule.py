"""Schedules: how many tokens are left at each depth."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from foveate.errors import ConfigError
from foveate.schedule import SCHEDULES, check_stages, named, of_present, turned

names = st.sampled_from(sorted(SCHEDULES))


def curve(stages: list[tuple[int, float]], layers: int) -> list[float]:
    """Share of the whole at every layer, from shares of those present."""
    share, found, at = 1.0, [], dict(stages)
    assert len(at) == len(stages)
    for layer in range(layers):
        share *= at.get(layer, 1.0)
        found.append(share)
    return found


def test_halving_at_the_quarters() -> None:
    assert named("halving", 28) == [(7, 0.5), (14, 0.25), (21, 0.125), (27, 0.0)]
    assert curve(of_present(named("halving", 8)), 8) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0]
    assert of_present(named("halving", 36)) == [(9, 0.5), (18, 0.5), (27, 0.5), (35, 0.0)]
    assert sum(curve(of_present(named("halving", 28)), 28)) / 28 == pytest.approx(0.464, abs=1e-3)


def test_linear() -> None:
    assert curve(of_present(named("linear", 5, 1)), 5) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert curve(of_present(named("linear", 7, 3)), 7) == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0])


def test_early() -> None:
    assert named("early", 10) == [(0, 0.5), (9, 0.0)]
    assert named("early", 28, 23) == [(0, 0.5), (23, 0.0)]
    assert named("early", 10, 9) == [(0, 0.5), (9, 0.0)]


@given(names, st.integers(2, 80), st.none() | st.integers(1, 100), st.floats(0, 1))
def test_every_schedule_falls_to_zero(name: str, layers: int, every: int | None, keep: float) -> None:
    assume(every is None or every < layers)
    stages = named(name, layers, every)
    check_stages(name, stages)
    assert all(0 <= layer < layers for layer, _ in stages)
    assert stages[-1][1] == 0
    here, steeper = (curve(of_present(turned(stages, k)), layers) for k in (keep, keep / 2))
    assert all(0 <= low <= high + 1e-9 for low, high in zip(steeper, here))
    assert here[-1] == (0 if keep < 1 else 1)


@given(names, st.integers(2, 80))
def test_the_dial(name: str, layers: int) -> None:
    stages = named(name, layers)
    assert turned(stages, 0.5) == stages
    assert all(share == 1 for _, share in turned(stages, 1.0))
    assert all(share == 0 for _, share in turned(stages, 0.0))
    thirds = turned([(3, 0.5), (6, 0.25)], 1 / 3)
    assert [share for _, share in thirds] == pytest.approx([1 / 3, 1 / 9])


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
        check_stages("stages", stages)


def test_bad_names_and_depths() -> None:
    with pytest.raises(ConfigError, match="early, halving, linear"):
        named("cosine", 12)
    with pytest.raises(ConfigError, match="at least two decoder layers"):
        named("halving", 1)
    for every in (0, 12):
        with pytest.raises(ConfigError, match="from 1 to 11"):
            named("linear", 12, every)
