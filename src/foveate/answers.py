"""What a method may answer at a site: a `Reduction`, or one of the classes of this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foveate.tokens import Reduction

Answer = Reduction


@dataclass(frozen=True)
class Reuse:
    """What a decoder layer takes from an earlier one, in place of computing it (a fact of the site: no method is asked).

    Queries and keys are those that the earlier layer's attention used: after their norm and rotary embedding. The layer's
    own projections are not computed for what is reused, so its attention weights are those of ``source`` and only the values
    are its own.

    Attributes:
        source: the earlier layer; negative counts from the end.
        of: ``qk``, queries and keys; ``q``, queries alone.
        tokens: ``visual``: text computes its own, so generated tokens do, too, and the cache entry holds keys as ever. ``all``:
            every token of a prompt with an image and of what follows it; of ``qk``, the layer's cache entry then holds
            values only (in a batch of which some rows have no image, or after a turn without one, it holds keys as well).
    """

    source: int
    of: Literal["qk", "q"] = "qk"
    tokens: Literal["visual", "all"] = "visual"

    def __str__(self) -> str:
        return f"{'queries and keys' if self.of == 'qk' else 'queries'} of layer {self.source}, {self.tokens} tokens"
