"""Intervals and tests against plain computations."""

from __future__ import annotations

from fractions import Fraction
from math import comb, isclose, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.lab.evaluation import statistics

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_solves_its_equation(pair: tuple[int, int]) -> None:
    """The ends are the proportions that lie 1.96 of their own standard errors from the one that was seen."""
    right, n = pair
    share = statistics.wilson(right, n)
    assert share.value == right / n
    assert 0 <= share.low <= share.value <= share.high <= 1
    for end in {share.low, share.high} - {0.0, 1.0}:
        assert isclose(abs(share.value - end), 1.959964 * sqrt(end * (1 - end) / n), rel_tol=1e-5, abs_tol=1e-9)


def test_wilson_of_a_known_case() -> None:
    share = statistics.wilson(81, 263)  # Newcombe (1998), table I, method 3
    assert (round(share.low, 4), round(share.high, 4)) == (0.2553, 0.3662)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=120))
def test_mcnemar_is_the_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    one, other = (np.array(side) for side in zip(*pairs))
    gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n = gained + lost
    tail = Fraction(sum(comb(n, i) for i in range(min(gained, lost) + 1)), 2**n)
    found = statistics.mcnemar(one, other)
    assert (found.gained, found.lost) == (gained, lost)
    assert isclose(found.p, float(min(Fraction(1), 2 * tail)), rel_tol=1e-9)


def test_mcnemar_of_many_questions() -> None:
    a = np.arange(10_000) % 2 == 0
    assert statistics.mcnemar(a, ~a).p == 1.0
    assert 0 <= statistics.mcnemar(np.ones(5_000, bool), np.zeros(5_000, bool)).p < 1e-300


def outcomes(seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Tasks of unequal size, a method, and a stock model that it resembles."""
    generator = np.random.default_rng(seed)
    tasks = ["a"] * 30 + ["b"] * 80 + ["c"] * 50
    dense = generator.random(160) < 0.85
    return tasks, dense & (generator.random(160) < 0.8), dense


def naive(tasks: list[str], values: list[np.ndarray], draws: int) -> np.ndarray:
    """Macro-averages ``(draws, outcomes)`` of questions drawn one by one with replacement inside their task."""
    generator = np.random.default_rng(1)
    rows = [np.flatnonzero(np.array(tasks) == task) for task in dict.fromkeys(tasks)]
    found = []
    for _ in range(draws):
        drawn = [generator.choice(stratum, len(stratum)) for stratum in rows]
        found.append([np.mean([value[stratum].mean() for stratum in drawn]) for value in values])
    return np.array(found)


def test_macro_average_counts_tasks_alike() -> None:
    tasks, right, _ = outcomes(0)
    found = statistics.macro(tasks, right)
    per_task = statistics.by_task(tasks, right)
    assert list(per_task) == ["a", "b", "c"]
    assert isclose(found.value, np.mean([right[:30].mean(), right[30:110].mean(), right[110:].mean()]))
    assert isclose(found.value, np.mean([share.value for share in per_task.values()]))
    assert found.n == 160


def test_intervals_are_those_of_the_bootstrap() -> None:
    tasks, right, dense = outcomes(0)
    drawn = naive(tasks, [right, dense], 4_000)
    accuracy, retention = statistics.macro(tasks, right), statistics.retention(tasks, right, dense)
    assert retention is not None
    assert isclose(retention.value, statistics.mean(tasks, right) / statistics.mean(tasks, dense))
    for share, draws in ((accuracy, drawn[:, 0]), (retention, drawn[:, 0] / drawn[:, 1])):
        assert np.allclose((share.low, share.high), np.percentile(draws, (2.5, 97.5)), atol=0.008)


def test_pairing_makes_retention_surer() -> None:
    tasks, right, dense = outcomes(0)
    paired = statistics.retention(tasks, right, dense)
    shuffled = np.random.default_rng(2).permutation
    parts = [shuffled(dense[rows]) for rows in (slice(30), slice(30, 110), slice(110, 160))]
    apart = statistics.retention(tasks, right, np.concatenate(parts))
    assert paired is not None
    assert apart is not None
    assert isclose(paired.value, apart.value)
    assert paired.high - paired.low < apart.high - apart.low


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_same_answers_are_retained_exactly(seed: int) -> None:
    tasks, _, dense = outcomes(seed)
    assert statistics.retention(tasks, dense, dense).value == 1
    assert statistics.macro(tasks, dense) == statistics.macro(tasks, dense), "the draws are fixed"


def test_no_task_of_one_question_is_taken_for_sure() -> None:
    """Of the same answers with a task for each question, the interval is that of one task; a lone one adds to the others'."""
    right = np.random.default_rng(3).random(40) < 0.7
    each, one = (statistics.macro(tasks, right) for tasks in (list(map(str, range(40))), [""] * 40))
    assert (each.value, each.low, each.high) == pytest.approx((one.value, one.low, one.high), abs=0.026)
    tasks = ["a"] * 39 + ["b"]
    lone = statistics.macro(tasks, right)
    assert lone.high - lone.low > 0.4, "half of the mean is one question"
    without = statistics.average(right[:39].astype(float))
    assert lone.high - lone.low > 2 * (without.high - without.low)


@pytest.mark.parametrize("n", [1, 2, 19])
@pytest.mark.parametrize("per_task", [1, 2])
def test_answers_that_are_all_alike_leave_room(n: int, per_task: int) -> None:
    """As much as a proportion of none has by Wilson, on both sides of a difference."""
    tasks, same = [str(i // per_task) for i in range(n)], np.ones(n, bool)
    room = statistics.wilson(0, n).high
    assert room > 0
    whole = statistics.macro(tasks, same)
    assert (whole.low, whole.high) == pytest.approx((1 - room, 1))
    apart = statistics.difference(tasks, same, same)
    assert (apart.value, apart.low, apart.high) == pytest.approx((0, -room, room))
    assert not apart.above(0)
    assert not apart.below(0)
    kept = statistics.retention(tasks, same, same)
    assert (kept.low, kept.high) == pytest.approx((1 - room, 1))
    nothing = statistics.retention(tasks, ~same, same)
    assert (nothing.low, nothing.high) == pytest.approx((0, room))


@pytest.mark.parametrize("values", [[0.3], [0.0, 0.0]])
def test_what_has_no_limit_has_no_interval_where_all_is_alike(values: list[float]) -> None:
    """One KL divergence, or several that are 0; nor can a difference of these be above or below another."""
    share = statistics.average(np.array(values))
    assert (share.low, share.high) == (None, None)
    assert not share.above(-1)
    assert not share.below(1)
    graded = np.array([700.0])
    assert statistics.macro(["a"], graded).low is None
    assert statistics.difference(["a"], graded, graded / 2).high is None
    assert statistics.retention(["a"], graded, graded).low is None


def test_retention_of_nothing() -> None:
    nothing = np.zeros(4, bool)
    assert statistics.retention(["a", "a", "b", "b"], ~nothing, nothing) is None


def test_chance() -> None:
    tasks = ["yes-no", "yes-no", "yes-no", "color", "color"]
    uniform, majority = statistics.chance(tasks, ["yes", "yes", "no", "red", "blue"], [2, 2, 2, 8, 8])
    assert uniform == pytest.approx((1 / 2 + 1 / 8) / 2)
    assert majority == pytest.approx((2 / 3 + 1 / 2) / 2)
