"""Stages follow from the step alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import ConfigError
from foveate.training.curriculum import Curriculum


def test_names() -> None:
    third = pytest.approx((1 / 9, 2 / 9, 1 / 3))
    assert Curriculum.parse("hard-to-easy", 1 / 3).keeps == third
    assert Curriculum.parse("easy-to-hard", 1 / 3).keeps == pytest.approx((1, 2 / 3, 1 / 3))
    assert Curriculum.parse("constant", 0.4).keeps == (0.4,)
    assert Curriculum.parse("0.1, 0.2,1", 1.0).keeps == (0.1, 0.2, 1.0)


@pytest.mark.parametrize("text", ["", "hard", "0.1,,0.2", "0.1;0.2"])
def test_words_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="choose hard-to-easy, easy-to-hard, constant"):
        Curriculum.parse(text, 0.5)


def test_shares_that_end_elsewhere() -> None:
    with pytest.raises(ConfigError, match=r"ends at 0\.3: end it with what is trained for, keep=0\.5"):
        Curriculum.parse("0.1,0.3", 0.5)


@pytest.mark.parametrize("text", ["1.5", "0.1,-0.2", "nan"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="not a ratio"):
        Curriculum.parse(text, 0.5)


@given(st.integers(1, 500), st.lists(st.floats(0, 1), min_size=1, max_size=5, unique=True))
def test_stages_are_equally_long_and_in_order(steps: int, keeps: list[float]) -> None:
    curriculum = Curriculum(tuple(keeps))
    seen = [keeps.index(curriculum.keep_at(step, steps)) for step in range(steps)]
    assert seen == sorted(seen)
    assert seen[0] == 0
    lengths = [seen.count(stage) for stage in range(len(keeps))]
    assert max(lengths) - min(lengths) <= 1
    assert curriculum.keep_at(steps, steps) == keeps[-1]
