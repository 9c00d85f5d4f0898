"""Budgets: how many tokens survive at a site."""

from __future__ import annotations

import math
from collections.abc import Sequence

from foveate.errors import ConfigError


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
        raise ConfigError(f"{name}={value!r} is not a ratio: give the share of tokens kept, from 0.0 to 1.0")


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
