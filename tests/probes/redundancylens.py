"""Visual tokens that see only their neighbours: hollow attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate import Host, Method, Site, Tokens
from foveate.answers import Answer, Sight
from foveate.units import Unit


@dataclass(frozen=True)
class HollowAttention(Method):
    """From decoder layer ``first`` to ``last``, a visual token sees the text and the visual tokens just before it alone.

    From the paper (RedundancyLens, 2501.19036): the range of about one tile; text sees everything. Ours: the layers are those
    between two, where the paper ranks them.
    """

    window: int = 255
    first: int = 1
    last: int = -1

    unit: ClassVar[Unit] = "none"

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", layer, action="sight") for layer in (self.first, self.last)]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        everybody = torch.ones(2, 2, dtype=torch.bool)
        hollow = site.layer == self.first
        return Sight(torch.zeros_like(tokens.index), everybody, self.window if hollow else None)
