"""Budgets: how many tokens survive at a site, and schedules: how many are left at each depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from foveate.errors import ConfigError, shown


def survivors(n: int, keep: float) -> int:
    """``round(keep * n)`` with halves rounded up. The one rounding rule of the library."""
    return math.floor(n * keep + 0.5)


def budget(counts: Sequence[int], keep: float, seen: Sequence[int] = ()) -> tuple[int, ...]:
    """Survivors per span at ratio ``keep``.

    A span that arrives in several chunks gets what the whole would get: of ``seen + n`` tokens, less what the
    ``seen`` were given.
    """
    earlier = seen or (0,) * len(counts)
    return tuple(survivors(n + s, keep) - survivors(s, keep) for n, s in zip(counts, earlier))


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


def ratio_for_mean(layers: Sequence[int], depth: int, mean: float) -> float:
    """The one ratio that, applied before each of ``layers``, leaves the share ``mean`` of a span's tokens per layer.

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
    low, high = 0.0, 1.0
    for _ in range(60):  # the mean grows with the ratio
        middle = (low + high) / 2
        if sum(length * middle**cuts for cuts, length in enumerate(lengths)) < mean * depth:
            low = middle
        else:
            high = middle
    return high
