"""Layer-skipping of the study of diffusion models (arXiv 2511.15098): visual tokens go around some layers of the decoder.

From the study: it suits models made of autoregressive ones, whose middle layers hardly change visual tokens. Ours: which
layers, evenly spaced tokens that go through all of them, and whether the layers in between still read the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from foveate import Host, Reduction, Site, Tokens
from foveate.ops import select
from foveate.pruners import SingleRatio
from foveate.units import Unit


@dataclass(frozen=True)
class LayerSkip(SingleRatio):
    """Only ``ratio`` of the visual tokens go through decoder layers ``first`` to ``last - 1``; the others come back."""

    first: int = 2
    last: int = 4
    read: bool = False

    unit: ClassVar[Unit] = "compute"
    usual: ClassVar[float] = 0.0

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        between = range(self.first, self.last) if self.read else ()
        return [
            Site("decoder", self.first, ratio, action="park"),
            *(Site("decoder", layer, action="attend") for layer in between),
            Site("decoder", self.last, action="restore"),
        ]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site)
        return Reduction(select.stride(tokens.counts, counts, tokens.index.device), counts)
