"""Q Cache / Lazy Attention (AAAI 2026, 2602.01901): layers that attend as the layer before compute values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from foveate import Host, Paper, Reuse, Site
from foveate.pruners import SingleRatio
from foveate.units import Unit

Blocks = tuple[tuple[int, int], ...]
USUAL: Blocks = ((1, 2), (3, 5))


@dataclass(frozen=True)
class LazyAttention(SingleRatio):
    """The first layer of every block computes queries and keys, the others of the block reuse them.

    From the paper: blocks of consecutive layers whose last-row attention is alike (Jensen-Shannon divergence on a few samples);
    text computes its own queries and keys (``tokens="visual"``, the paper's VLA), or does not (``"all"``, GLA).
    Ours: the blocks are given, or with ``ratio`` and ``keep`` as equal as can be; with ``"all"`` only is the cache smaller.

    Attributes:
        blocks: first and last layer of each block.
        ratio: share of the layers that compute their own, in place of the blocks.
    """

    blocks: Blocks | None = None
    tokens: Literal["visual", "all"] = "visual"
    of: Literal["qk", "q"] = "qk"

    unit: ClassVar[Unit] = "cache"
    how_much: ClassVar[tuple[str, ...]] = ("blocks", "ratio")
    paper: ClassVar[Paper] = Paper("Q Cache", "AAAI", 2026, "2602.01901")

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        return self.reusing(self.equal(ratio, host.layers))

    def sites(self, host: Host) -> Sequence[Site]:
        if self.ratio is None and self.keep is None:
            return self.reusing(USUAL if self.blocks is None else self.blocks)
        return super().sites(host)

    def equal(self, ratio: float, layers: int) -> Blocks:
        """Blocks as equal as can be, so many that ``ratio`` of the layers come first in one."""
        n = max(1, round(ratio * layers))
        return tuple((first, after - 1) for first, after in pairwise(layers * i // n for i in range(n + 1)))

    def reusing(self, blocks: Blocks) -> list[Site]:
        return [
            Site("decoder", layer, action="reuse", reuse=Reuse(first, self.of, self.tokens))
            for first, last in blocks
            for layer in range(first + 1, last + 1)
        ]
