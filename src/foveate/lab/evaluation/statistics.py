"""How sure a comparison is. Plain arrays in, numbers out; nothing here knows of models or methods.

``tasks (N,)`` are task names of N questions, ``right (N,)`` whether each was answered rightly, always in the same order; or
how well it was answered, where scores are no yes or no.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Bools = NDArray[np.bool_]
Scores = NDArray[np.bool_] | NDArray[np.float64]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_DRAWS = 10_000
_AT_ONCE = 2_000_000  # numbers that are drawn together
_SEED = 20_260_101


@dataclass(frozen=True)
class Share:
    """A share of ``n`` questions, a ratio of two, or a mean, with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """The questions on which two disagree: ``gained`` the first answers better, ``lost`` the second.

    `p` is that of the exact two-sided sign test (the binomial test of ``gained`` against 1/2); where answers are right or
    wrong, that is McNemar's test.
    """

    gained: int
    lost: int
    p: float


def wilson(right: int, n: int) -> Share:
    """A proportion of ``n > 0`` with the score interval of Wilson (1927), which is right near 0 and 1, too."""
    interval = stats.binomtest(right, n).proportion_ci(method="wilson")
    # At the ends the interval is closed by the proportion itself, but for rounding.
    low, high = 0.0 if right == 0 else float(interval.low), 1.0 if right == n else float(interval.high)
    return Share(right / n, low, high, n)


def by_task(tasks: Sequence[str], right: Bools) -> dict[str, Share]:
    """Accuracy of each task, in order of appearance."""
    return {task: wilson(int(right[rows].sum()), len(rows)) for task, rows in _strata(tasks).items()}


def macro(tasks: Sequence[str], right: Scores) -> Share:
    """Mean over tasks of their accuracies; percentile bootstrap (Efron 1979), stratified by task."""
    return Share(mean(tasks, right), *_interval(tasks, right.__getitem__, _mean_of_means), len(right))


def mean(tasks: Sequence[str], right: Scores) -> float:
    """Mean over tasks of their accuracies."""
    return float(np.mean([right[rows].mean() for rows in _strata(tasks).values()]))


def retention(tasks: Sequence[str], right: Scores, dense: Scores) -> Share | None:
    """The macro-average over that of ``dense``; the same questions are drawn for both. None: dense has nothing, or less."""
    if mean(tasks, dense) <= 0:
        return None

    def ratio(*drawn: Floats) -> Floats:
        mine, stock = (_mean_of_means(*(each[place] for each in drawn)) for place in (0, 1))
        # Of very few questions, a draw may hold none that dense can answer.
        return np.divide(mine, stock, out=np.full_like(mine, np.nan), where=stock > 0)

    both = np.stack([right, dense]).astype(np.float64)
    interval = _interval(tasks, lambda rows: both[:, rows], ratio)
    return Share(mean(tasks, right) / mean(tasks, dense), *interval, len(right))


def average(values: Floats) -> Share:
    """Mean of ``values (N,)``, N > 0; percentile bootstrap. Of differences on the same questions: a paired comparison."""
    return macro([""] * len(values), values)


def mcnemar(right: Scores, dense: Scores) -> Paired:
    """Exact test on pooled questions: do the two differ by more than chance?"""
    gained, lost = int((right > dense).sum()), int((dense > right).sum())
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Paired(gained, lost, p)


def chance(tasks: Sequence[str], truths: Sequence[str], choices: Sequence[int]) -> tuple[float, float]:
    """Macro-averages of guessing: one of the choices at random, and always the task's most frequent answer."""
    uniform, majority = [], []
    for rows in _strata(tasks).values():
        _, counts = np.unique([truths[row] for row in rows], return_counts=True)
        uniform.append(float(np.mean([1 / choices[row] for row in rows])))
        majority.append(float(counts.max()) / len(rows))
    return float(np.mean(uniform)), float(np.mean(majority))


def _strata(tasks: Sequence[str]) -> dict[str, Rows]:
    names = np.array(tasks)
    return {task: np.flatnonzero(names == task) for task in dict.fromkeys(tasks)}


def _mean_of_means(*drawn: Scores) -> Floats:
    """Over tasks; the last axis is that of questions."""
    return np.asarray(np.mean([each.mean(-1) for each in drawn], axis=0), np.float64)


def _interval(
    tasks: Sequence[str], values: Callable[[Rows], Scores], statistic: Callable[..., Floats]
) -> tuple[float, float]:
    """What `statistic` makes of the ``values`` of resampled questions of each task, 95 % of the times."""
    strata = list(_strata(tasks).values())
    many = [rows for rows in strata if len(rows) > 1]  # a task of one question is the same in every draw
    if not many:
        alone = float(statistic(*map(values, strata)))
        return alone, alone

    def of_rows(*drawn: Rows, axis: int) -> Floats:
        shape = drawn[0].shape[:-1]
        resampled = iter(drawn)
        each = (next(resampled) if len(rows) > 1 else np.broadcast_to(rows, (*shape, 1)) for rows in strata)
        return statistic(*map(values, each))

    draws = stats.bootstrap(
        many,
        of_rows,
        n_resamples=_DRAWS,
        batch=max(1, _AT_ONCE // len(tasks)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).bootstrap_distribution
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return float(low), float(high)
