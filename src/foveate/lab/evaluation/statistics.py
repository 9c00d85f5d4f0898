"""How sure a comparison is. Plain arrays in, numbers out; nothing here knows of models or methods.

``tasks (N,)`` are task names of N questions, ``right (N,)`` whether each was answered rightly, always in the same order; or
how well it was answered, where scores are no yes or no.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Scores = NDArray[np.bool_] | NDArray[np.float64]
Floats = NDArray[np.float64]

_Z = 1.959963984540054  # two-sided 95 %
_DRAWS = 10_000
_AT_ONCE = 500
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
    p, z2 = right / n, _Z**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # At the ends the interval is closed by the proportion itself, but for rounding.
    return Share(p, 0.0 if right == 0 else middle - half, 1.0 if right == n else middle + half, n)


def by_task(tasks: Sequence[str], right: Bools) -> dict[str, Share]:
    """Accuracy of each task, in order of appearance."""
    return {task: wilson(int(right[rows].sum()), len(rows)) for task, rows in _strata(tasks).items()}


def macro(tasks: Sequence[str], right: Scores) -> Share:
    """Mean over tasks of their accuracies; percentile bootstrap (Efron 1979), stratified by task."""
    draws = _resampled(tasks, right)[0].mean(0)
    return Share(mean(tasks, right), *_interval(draws), len(right))


def mean(tasks: Sequence[str], right: Scores) -> float:
    """Mean over tasks of their accuracies."""
    return float(np.mean([right[rows].mean() for rows in _strata(tasks).values()]))


def retention(tasks: Sequence[str], right: Scores, dense: Scores) -> Share | None:
    """The macro-average over that of ``dense``; the same questions are drawn for both. None: dense has nothing, or less."""
    if mean(tasks, dense) <= 0:
        return None
    one, other = (draws.mean(0) for draws in _resampled(tasks, right, dense))
    some = other > 0  # of very few questions, a draw may hold none that dense can answer
    return Share(mean(tasks, right) / mean(tasks, dense), *_interval(one[some] / other[some]), len(right))


def average(values: Floats) -> Share:
    """Mean of ``values (N,)``, N > 0; percentile bootstrap. Of differences on the same questions: a paired comparison."""
    generator = np.random.default_rng(_SEED)
    at_once = max(1, 2_000_000 // len(values))  # draws that are held in memory together
    draws = [
        values[generator.integers(len(values), size=(min(at_once, _DRAWS - start), len(values)))].mean(1)
        for start in range(0, _DRAWS, at_once)
    ]
    return Share(float(values.mean()), *_interval(np.concatenate(draws)), len(values))


def mcnemar(right: Scores, dense: Scores) -> Paired:
    """Exact test on pooled questions: do the two differ by more than chance?"""
    gained, lost = int((right > dense).sum()), int((dense > right).sum())
    n = gained + lost
    term = tail = 1  # binomial coefficients n over 0, 1, ..., as whole numbers
    for i in range(min(gained, lost)):
        term = term * (n - i) // (i + 1)
        tail += term
    return Paired(gained, lost, min(1.0, 2 * tail / 2**n) if n else 1.0)


def chance(tasks: Sequence[str], truths: Sequence[str], choices: Sequence[int]) -> tuple[float, float]:
    """Macro-averages of guessing: one of the choices at random, and always the task's most frequent answer."""
    uniform, majority = [], []
    for rows in _strata(tasks).values():
        _, counts = np.unique([truths[row] for row in rows], return_counts=True)
        uniform.append(float(np.mean([1 / choices[row] for row in rows])))
        majority.append(float(counts.max()) / len(rows))
    return float(np.mean(uniform)), float(np.mean(majority))


def _strata(tasks: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    names = np.array(tasks)
    return {task: np.flatnonzero(names == task) for task in dict.fromkeys(tasks)}


def _resampled(tasks: Sequence[str], *outcomes: Scores) -> NDArray[np.float64]:
    """Means of resampled questions: ``(outcomes, tasks, draws)``.

    A question is one of few patterns of scores (of right and wrong: 2^k), so drawing n questions is drawing their counts.
    """
    generator = np.random.default_rng(_SEED)
    pattern, values = _patterns(outcomes)
    found = []
    for rows in _strata(tasks).values():
        counts = np.bincount(pattern[rows], minlength=len(values))
        drawn = [
            values.T @ generator.multinomial(len(rows), counts / len(rows), size=_AT_ONCE).T / len(rows)
            for _ in range(_DRAWS // _AT_ONCE)
        ]
        found.append(np.concatenate(drawn, axis=1))
    return np.stack(found, axis=1)


def _patterns(outcomes: Sequence[Scores]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The pattern of each question ``(N,)``, and the scores in each pattern ``(patterns, outcomes)``."""
    if all(right.dtype == np.bool_ for right in outcomes):
        k = len(outcomes)
        bits = np.stack([right.astype(np.int64) << i for i, right in enumerate(outcomes)])
        return bits.sum(0), (np.arange(1 << k)[:, None] >> np.arange(k)[None] & 1).astype(np.float64)
    values, pattern = np.unique(np.stack(outcomes, axis=1).astype(np.float64), axis=0, return_inverse=True)
    return pattern.reshape(-1), values


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)
