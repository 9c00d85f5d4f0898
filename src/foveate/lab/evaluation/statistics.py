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
    """A share of ``n`` questions, a ratio of two, or a mean, with its 95 % confidence interval; None: ``n`` cannot give one."""

    value: float
    low: float | None
    high: float | None
    n: int

    def above(self, other: float) -> bool:
        """Whether the whole interval is above a value."""
        return self.low is not None and self.low > other

    def below(self, other: float) -> bool:
        """Whether the whole interval is below a value."""
        return self.high is not None and self.high < other


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
    """Mean over tasks of their accuracies; percentile bootstrap (Efron 1979), stratified by task.

    Tasks of one question are drawn as one task (collapsed strata, Cochran 1977, 5A.12): the interval is then too wide rather
    than too narrow. Where all draws are alike, it is how far questions of another kind could move the mean: as many as
    Wilson's interval for none among ``n`` allows. Scores that are no shares have no such limit, and then no interval.
    """
    return _macro(tasks, right, (0.0, 1.0) if _are_shares(right) else None)


def difference(tasks: Sequence[str], right: Scores, dense: Scores) -> Share:
    """The macro-average minus that of ``dense``, on the same questions."""
    shares = _are_shares(right) and _are_shares(dense)
    return _macro(tasks, np.subtract(right, dense, dtype=np.float64), (-1.0, 1.0) if shares else None)


def mean(tasks: Sequence[str], right: Scores) -> float:
    """Mean over tasks of their accuracies."""
    return float(np.mean([right[rows].mean() for rows in _strata(tasks).values()]))


def retention(tasks: Sequence[str], right: Scores, dense: Scores) -> Share | None:
    """The macro-average over that of ``dense``; the same questions are drawn for both. None: dense has nothing, or less.

    Where all draws are alike, ``dense`` is taken as it is, and the interval is that of the macro-average over it.
    """
    own, stock, n = mean(tasks, right), mean(tasks, dense), len(right)
    if stock <= 0:
        return None

    def ratio(*drawn: Floats) -> Floats:
        mine, theirs = (_mean_of_means(*(each[place] for each in drawn)) for place in (0, 1))
        # Of very few questions, a draw may hold none that dense can answer.
        return np.divide(mine, theirs, out=np.full_like(mine, np.nan), where=theirs > 0)

    both = np.stack([right, dense]).astype(np.float64)
    low, high = _interval(tasks, lambda rows: both[:, rows], ratio)
    if low < high:
        return Share(own / stock, low, high, n)
    alike = _alike(own, n, (0.0, 1.0) if _are_shares(right) else None)
    ends = [None if end is None else end / stock for end in (alike.low, alike.high)]
    return Share(own / stock, ends[0], ends[1], n)


def average(values: Floats) -> Share:
    """Mean of ``values (N,)``, N > 0; percentile bootstrap, and no interval of values that are all the same.

    Of differences on the same questions: a paired comparison.
    """
    return _macro([""] * len(values), values, None)


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


def _are_shares(scores: Scores) -> bool:
    return bool(scores.min() >= 0 and scores.max() <= 1)


def _macro(tasks: Sequence[str], scores: Scores, within: tuple[float, float] | None) -> Share:
    """``within``: the scores that are possible, if there is a limit."""
    value, n = mean(tasks, scores), len(scores)
    low, high = _interval(tasks, scores.__getitem__, _mean_of_means)
    return Share(value, low, high, n) if low < high else _alike(value, n, within)


def _alike(value: float, n: int, within: tuple[float, float] | None) -> Share:
    """The interval of a mean where all draws are alike: see `macro`."""
    if within is None:
        return Share(value, None, None, n)
    unseen = stats.binomtest(0, n).proportion_ci(method="wilson").high
    low, high = (float(value + unseen * (end - value)) for end in within)
    return Share(value, low, high, n)


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
    strata = sorted(_strata(tasks).values(), key=lambda rows: len(rows) > 1)
    n_alone = sum(len(rows) == 1 for rows in strata)
    # What may take the place of a task's only question.
    together = np.concatenate(strata[:n_alone] if n_alone > 1 else strata)
    if len(together) == 1:
        alone = float(statistic(*map(values, strata)).item())
        return alone, alone

    def of_rows(*drawn: Rows, axis: int) -> Floats:
        singles = (drawn[0][..., place, None] for place in range(n_alone))
        return statistic(*map(values, (*singles, *drawn[1 if n_alone else 0 :])))

    draws = stats.bootstrap(
        [*([together] if n_alone else []), *strata[n_alone:]],
        of_rows,
        n_resamples=_DRAWS,
        batch=max(1, _AT_ONCE // len(tasks)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).bootstrap_distribution
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return float(low), float(high)
