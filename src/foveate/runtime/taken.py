"""What a decoder layer takes from an earlier one in a forward."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.answers import Reuse


@dataclass(frozen=True, eq=False)
class Taken:
    """What a layer takes from an earlier one in a forward.

    Attributes:
        reuse: whose, and of which.
        rows: rows of the batch of which it is every token; None: visual tokens alone.
        tokens: how many that are, over the batch, padding included.
        whole: there are no others; where keys are taken, the cache entry holds none.
    """

    reuse: Reuse
    rows: tuple[bool, ...] | None
    tokens: int
    whole: bool
