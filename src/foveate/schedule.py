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
