"""Q Cache / Lazy Attention (AAAI 2026, 2602.01901): layers that attend as the layer before compute values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from foveate import Host, Method, Paper, Reuse, Site


@dataclass(frozen=True)
class LazyAttention(Method):
    """The first layer of every block computes queries and keys, the others of the block reuse them.

    From the paper: blocks of consecutive layers whose last-row attention is alike (Jensen-Shannon divergence on a few samples);
    text computes its own queries and keys (``tokens="visual"``, the paper's VLA), or does not (``"all"``, GLA).
    Ours: the blocks are given; the cache entry is smaller with ``"all"`` only.
    """

    blocks: tuple[tuple[int, int], ...] = ((1, 2), (3, 5))  # first and last layer
    tokens: Literal["visual", "all"] = "visual"
    of: Literal["qk", "q"] = "qk"

    paper: ClassVar[Paper] = Paper("Q Cache", "AAAI", 2026, "2602.01901")

    def sites(self, host: Host) -> Sequence[Site]:
        return [
            Site("decoder", layer, action="reuse", reuse=Reuse(first, self.of, self.tokens))
            for first, last in self.blocks
            for layer in range(first + 1, last + 1)
        ]
