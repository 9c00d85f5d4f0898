"""A budget says how many tokens survive at a site, a `Schedule` which share of them is left at each depth."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from foveate.errors import ConfigError, shown


def survivors(n: int, keep: float, least: int = 1) -> int:
    """Round a share to a count, by the one rule: ``round(keep * n)``, halves up, at least ``least`` unless ``keep`` is 0."""
    return max(math.floor(n * keep + 0.5), min(n, least) if keep > 0 else 0)


def budget(
    counts: Sequence[int],
    keep: float | Sequence[float],
    seen: Sequence[int] = (),
    *,
    clips: Sequence[Sequence[int]] | None = None,
    history: Sequence[Sequence[int]] = (),
    total: Sequence[int] = (),
) -> tuple[int, ...]:
    """Count survivors per span, rounded once for every clip (an image, or all frames of a video) and schedule.

    A clip that arrives in several chunks gets what the whole would get: of all that has come so far, less what the earlier
    part was given.

    Args:
        counts: ``(S,)`` tokens present per span.
        keep: the share of them that survives; of a schedule: the shares that are left after each of its cuts, up to this one,
            of what was there at the first.
        seen: ``(S,)`` tokens of the span's clip that earlier forwards brought here.
        clips: the spans of each clip, in order; None: every span is one.
        history: ``(S,)`` counts before each reduction so far, the last one last. Where they are not what the schedule leaves
            (others acted in between), it goes on from what is present.
        total: ``(S,)`` tokens of the span's clip that all chunks together bring to the first cut, 0 where that is unknown;
            empty: there is one chunk.
    """
    shares = [keep] if isinstance(keep, (int, float)) else list(keep)
    recent = history[max(0, len(history) - len(shares) + 1) :]
    found = [0] * len(counts)
    for clip in [[span] for span in range(len(counts))] if clips is None else clips:
        here = [counts[span] for span in clip]
        if total or any(seen):
            earlier, whole = (facts[clip[0]] if facts else 0 for facts in (seen, total))
            kept, base = _of_chunk(sum(here), earlier, shares, whole), here
        else:
            kept, base = _of_clip([[then[span] for span in clip] for then in recent], here, shares)
        for span, n in zip(clip, spread(kept, base, here)):
            found[span] = n
    return tuple(found)


def _of_clip(history: Sequence[list[int]], here: list[int], shares: Sequence[float]) -> tuple[int, list[int]]:
    """Count survivors of a clip at the last cut of ``shares``, and the tokens per span that they are a share of.

    That is what was there at the first cut from which on the schedule alone has decided.
    """
    left = [1.0, *shares]
    for cuts in range(min(len(shares) - 1, len(history)), -1, -1):  # how many cuts ago
        base, before = history[-cuts] if cuts else here, left[-2 - cuts]
        expected, after = (survivors(sum(base), share / before if before else 0.0) for share in left[-2:])
        if expected == sum(here):
            break
    return after, base


def _of_chunk(n: int, seen: int, shares: Sequence[float], total: int) -> int:
    """Count survivors of a clip's ``n`` tokens that come after ``seen`` others, of ``total`` in all (0: unknown)."""
    if not total:
        share = shares[-1] / shares[-2] if len(shares) > 1 and shares[-2] else shares[-1]
        return survivors(seen + n, share) - survivors(seen, share)
    before, after = (survivors(total, share) for share in [1.0, *shares][-2:])
    return _nearest(after * (seen + n), before) - _nearest(after * seen, before)


def spread(total: int, weights: Sequence[int], room: Sequence[int]) -> list[int]:
    """Spread ``total`` over several spans in proportion to ``weights``, by cumulative rounding.

    Args:
        total: at most the sum of ``room``.
        weights: where they are equal, the spans get equally many, or one more or less.
        room: the most that each span can have; what does not fit goes to the next one that has room.
    """
    whole, end, given, found = sum(weights), 0, 0, []
    for weight, most in zip(weights, room):
        end += weight
        found.append(max(0, min(most, _nearest(total * end, whole) - given)))
        given += found[-1]
    for i in reversed(range(len(found))):
        more = min(room[i] - found[i], total - given)
        found[i], given = found[i] + more, given + more
    return found


def _nearest(numerator: int, denominator: int) -> int:
    """Return the whole number nearest to a fraction, halves up; 0 if its denominator is 0."""
    return (2 * numerator + denominator) // (2 * denominator) if denominator else 0


def check_ratio(name: str, value: float) -> None:
    """Raise `ConfigError` unless a share of tokens kept is one: ``0 <= value <= 1``."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}={shown(value)} is not a ratio: give the share of tokens kept, from 0.0 to 1.0")


#: What a cosine between two tokens is compared with, as `check_within` says it.
COSINE = "a limit for cosines"


def check_within(what: str, most: float = 1.0, /, **options: float | None) -> None:
    """Raise `ConfigError` unless each of the ``options`` that is given is from 0 to ``most``, as ``what`` it is must be."""
    for name, value in options.items():
        if value is not None and not 0.0 <= value <= most:
            upward = "or more" if most == math.inf else f"to {most}"
            raise ConfigError(f"{name}={shown(value)} is not {what}: give 0.0 {upward}")


# -- schedules: the share of an image's tokens that is left at each depth ------------------------------------------------

Stage = tuple[int, float]  # from this layer on, this share
#: How a method's option spells a schedule: a name (`SCHEDULES`), or (layer, share of all tokens from there on) pairs.
Spelling = Literal["early", "halving", "linear"] | tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Schedule:
    """A schedule says which share of an image's tokens is left from which layer on; before the first of them all are there.

    The same pairs fit any depth, so a mean is of so many layers. What a ``keep`` asks for is `at_mean`.

    Attributes:
        stages: (layer, share of the whole from there on), in the order of the layers; shares never grow.
    """

    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        for layer, share in self.stages:
            check_ratio("schedule", share)
            if layer < 0:
                raise ConfigError(f"schedule: layer {layer} is negative; count layers from 0")
        for (layer, share), (next_layer, next_share) in pairwise(self.stages):
            if next_layer <= layer:
                raise ConfigError(
                    f"schedule: layer {next_layer} comes after layer {layer}; list layers in ascending order, each once"
                )
            if next_share > share:
                raise ConfigError(
                    f"schedule: the share grows from {share} to {next_share} at layer {next_layer}, but tokens that have "
                    "left do not come back: let shares fall"
                )

    # -- made from ...

    @classmethod
    def named(cls, name: str, layers: int, every: int | None = None) -> Schedule:
        """Spread the schedule of a name over a model.

        Args:
            name: one of `SCHEDULES`.
            layers: of the decoder; at least two, or there is no depth to spread over.
            every: layers from one stage to the next; None: as the schedule has it.
        """
        if name not in SCHEDULES:
            raise ConfigError(f"there is no schedule {name!r}; there are {', '.join(SCHEDULES)}")
        if layers < 2:
            raise ConfigError(f"a schedule needs at least two decoder layers to spread over, not {layers}")
        if every is not None and not 1 <= every < layers:
            raise ConfigError(
                f"every={every}: give the layers from one stage to the next, from 1 to {layers - 1} in this model"
            )
        return cls(tuple(SCHEDULES[name](layers, every)))

    @classmethod
    def cuts(cls, layers: Sequence[int], ratios: float | Sequence[float]) -> Schedule:
        """Make a schedule of ratios of the tokens present, one for all of ``layers`` or one for each."""
        each = [ratios] * len(layers) if isinstance(ratios, (int, float)) else list(ratios)
        if not layers or len(set(layers)) < len(layers):
            raise ConfigError(f"layers={tuple(layers)}: give at least one layer, and each of them once")
        if len(each) != len(layers):
            raise ConfigError(f"give one ratio per layer: there are {len(layers)} layers and {len(each)} ratios")
        stages, share = [], 1.0
        for layer, ratio in sorted(zip(layers, each)):
            share *= ratio
            stages.append((layer, share))
        return cls(tuple(stages))

    @classmethod
    def scaled(cls, layers: Sequence[int], ratios: Sequence[float], of: int, to: int, first: int = 0) -> Schedule:
        """Scale cuts in a model with ``of`` layers to the same depths of one with ``to``, not before layer ``first``.

        Cuts that meet at one layer of the other model are one there, which leaves what the last of them leaves.
        """
        stages = {max(first, round(to * layer / of)): share for layer, share in cls.cuts(layers, ratios).stages}
        return cls(tuple(stages.items())).within(to)

    def within(self, layers: int) -> Schedule:
        """Fit this schedule to a model with so many layers: stages that come too late for it move to its last one."""
        return Schedule(tuple({min(layer, layers - 1): share for layer, share in self.stages}.items()))

    @classmethod
    def along(cls, curve: Sequence[float], first: int = 0, step: float = 0.02) -> Schedule:
        """Make the schedule that follows a falling curve of shares, layer by layer.

        Args:
            curve: share of all tokens in each layer.
            first: tokens leave before this layer at the earliest.
            step: a share that has fallen by less waits for the next layer, as each stage costs a choice; less than half of
                it left is nothing.
        """
        found: list[Stage] = []
        present = 1.0
        for layer in range(first, len(curve)):
            share = round(curve[layer], 4) if curve[layer] >= step / 2 else 0.0
            if present - share >= step or (share == 0 < present):
                found.append((layer, share))
                present = share
        return cls(tuple(found))

    # -- read as ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers before which tokens leave."""
        return tuple(layer for layer, _ in self.stages)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The share of the tokens present that each stage leaves; 0 where none are present."""
        before = [1.0, *(share for _, share in self.stages)]
        return tuple(share / present if present else 0.0 for present, share in pairwise(before))

    def curve(self, depth: int) -> list[float]:
        """Tell the share of all tokens that each of ``depth`` layers holds."""
        found, share, left = [], 1.0, dict(self.stages)
        for layer in range(depth):
            share = left.get(layer, share)
            found.append(share)
        return found

    def mean(self, depth: int) -> float:
        """Tell the mean share per layer of a model with ``depth`` layers."""
        return sum(self.curve(depth)) / depth

    def least(self, depth: int) -> float:
        """Tell the mean share that is left if every cut drops everything: that of the layers before the first."""
        return min((layer for layer, share in self.stages if share < _WHOLE), default=depth) / depth

    # -- set to ...

    def power(self, t: float) -> Schedule:
        """Raise all shares to the power of ``t``: more than 1 is steeper, less is flatter, 0 keeps whatever is not withdrawn.

        No power brings back what a share of exactly 0 withdraws. So from 0 to -1 these shares rise: they are ``-t``, and the
        others 1; -1 keeps everything.
        """
        return Schedule(tuple((layer, to_power(share, t)) for layer, share in self.stages))

    def at_mean(self, keep: float, depth: int) -> Schedule:
        """Find the schedule with the same layers that leaves the mean share ``keep`` per layer: ``mean(depth) == keep``.

        With one cut before layer k, what is left is ``(keep * depth - k) / (depth - k)``; with several, all shares get the
        one power that does it.

        Raises:
            ConfigError: even dropping everything at the first cut would leave more.
        """
        check_ratio("keep", keep)
        if self.stages and self.layers[-1] >= depth:
            raise ConfigError(
                f"there is no layer {self.layers[-1]} to cut before: the model has {depth}, 0 to {depth - 1}"
            )
        cuts = Schedule(tuple(stage for stage in self.stages if stage[1] < _WHOLE))  # no power changes a share of 1
        least = cuts.least(depth)
        if keep < least * (1 - 1e-9):
            raise ConfigError(
                f"keep={keep:.4g} cannot be reached: all tokens are there up to the first cut, before layer "
                f"{round(least * depth)} of {depth}, so {least:.4g} is the least here; cut earlier, or keep more"
            )
        if len(cuts.stages) == 1:
            ((layer, _),) = cuts.stages
            return Schedule(((layer, min(max(0.0, (keep * depth - layer) / (depth - layer)), 1.0)),))
        return cuts.power(solve_power(lambda t: cuts.power(t).mean(depth), keep))

    def earlier(self, keep: float, depth: int, first: int = 0) -> Schedule:
        """Move the cuts earlier, where the layers before the first one would hold more than the mean ``keep``.

        All layers are multiplied by the one factor that makes those before the first cut hold half of what ``keep`` allows,
        and rounded down, to ``first`` at the earliest. Of cuts that meet at one layer the last one counts.
        """
        start = self.layers[0]
        if start <= keep * depth:
            return self
        factor = keep * depth / 2 / start
        return Schedule(tuple({max(first, int(layer * factor)): share for layer, share in self.stages}.items()))


#: a share above differs from 1 by rounding alone
_WHOLE = 1 - 1e-6


def to_power(share: float, t: float) -> float:
    """Raise a share to a power, as `Schedule.power` has it."""
    if t < 0:
        return 1.0 if share else -t
    if t == math.inf or share == 0:
        return float(share == 1)
    return max(float(share**t), sys.float_info.min)  # only an exact 0 withdraws all


def solve_power(mean: Callable[[float], float], keep: float) -> float:
    """Find the power ``t``, -1 to infinity, at which ``mean(t)``, which falls as ``t`` grows, is ``keep``."""
    if keep >= mean(-1.0):
        return -1.0
    if keep <= mean(math.inf):
        return math.inf
    if keep > mean(0.0):
        return _bisect(mean, keep, -1.0, 0.0)
    low, high = 0.0, 1.0
    while high < 1e9 and mean(high) > keep:
        low, high = high, 2 * high
    return _bisect(mean, keep, low, high)


def _bisect(mean: Callable[[float], float], keep: float, low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > keep else (low, middle)
    return high


def times_factor(curve: Sequence[float], like: Schedule, depth: int) -> list[float]:
    """Multiply a curve by the one factor with which it leaves the mean share of a schedule, where no share is above 1.

    Args:
        curve: what is left from each layer of ``like`` on, above 0.
        like: the schedule.
        depth: layers that its mean is over.
    """
    held = [b - a for a, b in pairwise([*like.layers, depth])]
    wanted = sum(n * share for n, (_, share) in zip(held, like.stages))
    low, high = 0.0, 1 / max(min(curve, default=1.0), sys.float_info.min)
    for _ in range(200):
        factor = (low + high) / 2
        less = sum(n * min(1.0, factor * share) for n, share in zip(held, curve)) < wanted
        low, high = (factor, high) if less else (low, factor)
    return [min(1.0, high * share) for share in curve]


def halving(layers: int, every: int | None = None) -> list[Stage]:
    """Half of those present leave at 1/4, 1/2 and 3/4 of the depth (or every so many layers), the rest before the last."""
    last = layers - 1
    starts = [-(-layers * i // 4) for i in (1, 2, 3)] if every is None else list(range(every, last, every))
    return [*((layer, 0.5**i) for i, layer in enumerate(starts, 1) if layer < last), (last, 0.0)]


def linear(layers: int, every: int | None = None) -> list[Stage]:
    """Tokens leave evenly until the last layer has none: ``1 - layer / last`` are left, set anew every two layers or more."""
    every, last = every or 2, layers - 1
    return [*((layer, 1 - layer / last) for layer in range(every, last, every)), (last, 0.0)]


def early(layers: int, every: int | None = None) -> list[Stage]:
    """Half of all leave before the first layer, the rest before the last (or after so many layers)."""
    return [(0, 0.5), (min(every or layers, layers - 1), 0.0)]


#: Shares of the whole by layer, for any depth. All end at zero tokens in the last layer.
SCHEDULES: dict[str, Callable[[int, int | None], list[Stage]]] = {"early": early, "halving": halving, "linear": linear}


def sigmoid(layers: int, steepness: float, offset: float) -> list[float]:
    """Return P-Sigmoid's curve (arXiv 2412.00556): ``1 / (1 + exp(steepness * depth - offset))`` of all tokens in a layer.

    Args:
        layers: of the decoder; their depths are 0 to 1.
        steepness: 0 is a flat curve, more than 30 a cliff.
        offset: where it falls: at a half of the depth if it is half of the steepness.
    """
    depths = [steepness * layer / max(layers - 1, 1) - offset for layer in range(layers)]
    return [1 / (1 + math.exp(min(depth, 700.0))) for depth in depths]  # more than that is none, and no float
