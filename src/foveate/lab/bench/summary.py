"""What the measurements say: medians with quartiles, ratios to the stock model in the same round, and where a method pays."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from foveate.lab.bench.result import DENSE, Case, Line, Result

#: Times of a call, in the order of the table.
STAGES = ("tower", "prefill", "first", "decode", "total")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A method next to the stock model, in one case.

    Attributes:
        speed: by stage, the stock model's time over the method's, in the same round; above 1 the method is faster.
        tokens: visual tokens per row and decoder layer.
        flops: of the whole call, by the formula, over the stock model's; counted: the same as torch counted them.
        kv, peak: bytes of the cache, and of the most memory above the model's own, over the stock model's.
        of_ideal: speed-up to the first token over what the FLOPs up to there would give.
    """

    case: Case
    label: str
    speed: dict[str, Spread]
    tokens: float
    flops: float
    counted: float
    kv: float
    peak: float
    of_ideal: float


@dataclass(frozen=True)
class Crossover:
    """From how many visual tokens a method is faster than the stock model, for one model and batch.

    Attributes:
        stage: of `STAGES`.
        tokens: where the lower quartile of the speed-up crosses 1, between two measured sizes; None: nowhere measured.
        smallest, largest: that were measured; with ``tokens`` equal to ``smallest`` it may lie below.
    """

    model: str
    batch: int
    label: str
    stage: str
    tokens: float | None
    smallest: int
    largest: int


def spread(values: Sequence[float]) -> Spread:
    """Of one value, itself thrice."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def seconds(line: Line, stage: str) -> Spread | None:
    """None where it was not measured."""
    values = [times[stage] for times in line.repeats if stage in times]
    return spread(values) if values else None


def stock_flops(case: Case) -> dict[str, int] | None:
    """The stock model's by stage, as the formula of any method's report has them."""
    for line in case.lines.values():
        if line.probe is not None and "full_flops" in line.probe:
            found: dict[str, int] = line.probe["full_flops"]
            return found
    return None


def compare(case: Case, label: str) -> Comparison | None:
    """None where the stock model or the method could not run, or has not yet."""
    dense, line = case.lines[DENSE], case.lines[label]
    if line.method is None or dense.probe is None or line.probe is None or not (dense.repeats and line.repeats):
        return None
    speed = {}
    for stage in STAGES:
        pairs = [(a[stage], b[stage]) for a, b in zip(dense.repeats, line.repeats) if stage in a and stage in b]
        if pairs:
            speed[stage] = spread([stock / ours for stock, ours in pairs])
    new_tokens = line.probe["new_tokens"]
    full, now = (_to_first(line.probe[name], new_tokens) for name in ("full_flops", "flops"))
    return Comparison(
        case,
        label,
        speed,
        line.probe["tokens"],
        sum(line.probe["flops"].values()) / sum(line.probe["full_flops"].values()),
        line.probe["counted"] / dense.probe["counted"],
        line.probe["kv"] / dense.probe["kv"],
        line.probe["peak"] / dense.probe["peak"],
        speed["first"].median / (full / now),
    )


def _to_first(flops: dict[str, int], new_tokens: int) -> float:
    """FLOPs up to the first token."""
    return sum(count for stage, count in flops.items() if stage not in ("decode", "head")) + flops["head"] / new_tokens


def crossovers(result: Result, stage: str = "first") -> list[Crossover]:
    """One for every model, batch and method that was measured at several numbers of visual tokens."""
    curves: dict[tuple[str, int, str], list[tuple[int, float]]] = {}
    for case in result.cases:
        for label in case.lines:
            found = compare(case, label)
            if found is not None and stage in found.speed:
                curves.setdefault((case.model, case.batch, label), []).append((case.tokens, found.speed[stage].low))
    return [
        Crossover(model, batch, label, stage, crossing(curve), min(curve)[0], max(curve)[0])
        for (model, batch, label), curve in curves.items()
        if len(curve) > 1
    ]


def crossing(curve: Sequence[tuple[int, float]]) -> float | None:
    """The number of tokens from which on ``(tokens, speed-up)`` stays above 1, by logarithms; None: never."""
    points = sorted(curve)
    slow = [i for i, (_, speed) in enumerate(points) if speed <= 1]
    if not slow:
        return points[0][0]
    if slow[-1] == len(points) - 1:
        return None
    (a, below), (b, above) = points[slow[-1]], points[slow[-1] + 1]
    share = (0.0 - math.log(below)) / (math.log(above) - math.log(below))
    return math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
