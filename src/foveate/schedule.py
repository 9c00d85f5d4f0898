"""Budgets: how many tokens survive at a site, and schedules: how many are left at each depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from foveate.errors import ConfigError, shown


def survivors(n: int, keep: float, least: int = 1) -> int:
    """The one rounding rule: ``round(keep * n)``, halves up, and at least ``least`` of them unless ``keep`` is 0."""
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
    """Survivors per span, rounded once for every clip (an image, or all frames of a video) and over all cuts of a schedule.

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
    """Survivors of a clip at the last cut of ``shares``, and the tokens per span that they are a share of.

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
    """Survivors of a clip's ``n`` tokens that come after ``seen`` others, of ``total`` in all (0: unknown)."""
    if not total:
        share = shares[-1] / shares[-2] if len(shares) > 1 and shares[-2] else shares[-1]
        return survivors(seen + n, share) - survivors(seen, share)
    before, after = (survivors(total, share) for share in [1.0, *shares][-2:])
    return _nearest(after * (seen + n), before) - _nearest(after * seen, before)


def spread(total: int, weights: Sequence[int], room: Sequence[int]) -> list[int]:
    """``total`` over several spans in proportion to ``weights``, by cumulative rounding.

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
    """The whole number nearest to a fraction, halves up; 0 if it is of nothing."""
    return (2 * numerator + denominator) // (2 * denominator) if denominator else 0


def check_ratio(name: str, value: float) -> None:
    """Raise `ConfigError` unless ``0 <= value <= 1``."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}={shown(value)} is not a ratio: give the share of tokens kept, from 0.0 to 1.0")


# -- schedules: how many of a span's tokens are left at each depth -------------------------------------------------------

Stage = tuple[int, float]  # from this layer on, this share


def halving(layers: int, every: int | None = None) -> list[Stage]:
    """Half of those present leave at 1/4, 1/2 and 3/4 of the depth (or every so many layers), the rest before the last."""
    last = layers - 1
    starts = [-(-layers * i // 4) for i in (1, 2, 3)] if every is None else list(range(every, last, every))
    return [*((layer, 0.5**i) for i, layer in enumerate(starts, 1) if layer < last), (last, 0.0)]


def linear(layers: int, every: int | None = None) -> list[Stage]:
    """Of all, ``1 - layer / last``, set anew every two layers (or every so many); so none in the last."""
    every, last = every or 2, layers - 1
    return [*((layer, 1 - layer / last) for layer in range(every, last, every)), (last, 0.0)]


def early(layers: int, every: int | None = None) -> list[Stage]:
    """Half of all leave before the first layer, the rest before the last (or after so many layers)."""
    return [(0, 0.5), (min(every or layers, layers - 1), 0.0)]


#: Shares of the whole by layer, for any depth. All end at zero tokens in the last layer.
SCHEDULES: dict[str, Callable[[int, int | None], list[Stage]]] = {"early": early, "halving": halving, "linear": linear}


def named(name: str, layers: int, every: int | None = None) -> list[Stage]:
    """The stages of a named schedule in a model with so many layers.

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
    return SCHEDULES[name](layers, every)


def check_stages(name: str, stages: Sequence[Stage]) -> None:
    """Raise `ConfigError` unless layers ascend and shares are ratios that do not grow."""
    for layer, share in stages:
        check_ratio(name, share)
        if layer < 0:
            raise ConfigError(f"{name}: layer {layer} is negative; count the decoder's layers from 0")
    for (layer, share), (next_layer, next_share) in pairwise(stages):
        if next_layer <= layer:
            raise ConfigError(f"{name}: layer {next_layer} comes after layer {layer}; list layers in ascending order")
        if next_share > share:
            raise ConfigError(
                f"{name}: the share grows from {share} to {next_share} at layer {next_layer}, but tokens that have left "
                "do not come back: let shares fall"
            )


def turned(stages: Sequence[Stage], keep: float) -> list[Stage]:
    """Steeper or flatter stages: every share to the power that turns 1/2 into ``keep``.

    So ``keep`` is what is left where the stages say a half: 0.5 changes nothing, 1 keeps everything to the end, 0 nothing
    from the first stage on.
    """
    power = math.log(keep) / math.log(0.5) if keep else math.inf
    return [(layer, float(share**power)) for layer, share in stages]


def sigmoid(layers: int, steepness: float, offset: float) -> list[float]:
    """The curve of P-Sigmoid (arXiv 2412.00556): ``1 / (1 + exp(steepness * depth - offset))`` of all tokens in each layer.

    Args:
        layers: of the decoder; their depths are 0 to 1.
        steepness: 0 is a flat curve, more than 30 a cliff.
        offset: where it falls: at a half of the depth if it is half of the steepness.
    """
    return [1 / (1 + math.exp(steepness * layer / max(layers - 1, 1) - offset)) for layer in range(layers)]


def stages_of(curve: Sequence[float], first: int = 0, step: float = 0.02) -> list[Stage]:
    """The stages that follow a falling curve of shares, layer by layer.

    Args:
        curve: share of all tokens in each layer.
        first: tokens leave before this layer at the earliest.
        step: a share that has fallen by less waits for the next layer, as each stage costs a choice; less than half of it
            left is nothing.
    """
    found: list[Stage] = []
    present = 1.0
    for layer in range(first, len(curve)):
        share = round(curve[layer], 4) if curve[layer] >= step / 2 else 0.0
        if present - share >= step or (share == 0 < present):
            found.append((layer, share))
            present = share
    return found


def of_present(stages: Sequence[Stage]) -> list[Stage]:
    """Shares of the whole as shares of those present, for `Site.keep`; up to the stage that leaves nothing."""
    found, present = [], 1.0
    for layer, share in stages:
        if present > 0:
            found.append((layer, share / present))
        present = share
    return found


def of_whole(stages: Sequence[Stage]) -> list[Stage]:
    """Shares of those present as shares of the whole; what `of_present` undoes."""
    return [(layer, math.prod(share for _, share in stages[: i + 1])) for i, (layer, _) in enumerate(stages)]


def ratio_for_mean(layers: Sequence[int], depth: int, mean: float) -> float:
    """The one ratio that, applied before each of ``layers``, leaves the share ``mean`` of an image's tokens per layer.

    Layer ``l`` of ``depth`` holds ``ratio ** c`` of them, where ``c`` of ``layers`` are at most ``l``.

    Raises:
        ConfigError: no such layers, or even dropping all of the tokens at the first of them leaves more than ``mean``.
    """
    check_ratio("mean", mean)
    for layer in layers:
        if not 0 <= layer < depth:
            raise ConfigError(f"there is no decoder layer {layer}: the model has {depth}, 0 to {depth - 1}")
    if not layers or len(set(layers)) < len(layers):
        raise ConfigError(f"layers={tuple(layers)}: give at least one layer, and each of them once")
    starts = sorted(layers)
    lengths = [after - before for before, after in zip([0, *starts], [*starts, depth])]
    if mean * depth < starts[0] - 1e-9:
        raise ConfigError(
            f"a mean of {mean:.4g} cannot be reached: the {starts[0]} layers before the first cut hold all tokens, so "
            f"{starts[0] / depth:.4g} is the least; cut earlier, or ask for more"
        )
    if mean * depth <= starts[0] * (1 + 1e-9):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):  # the mean grows with the ratio
        middle = (low + high) / 2
        if sum(length * middle**cuts for cuts, length in enumerate(lengths)) < mean * depth:
            low = middle
        else:
            high = middle
    return high
