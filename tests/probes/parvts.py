"""Two groups of visual tokens that go through the first layers side by side, and do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate import Host, Method, Reduction, Site, Tokens
from foveate.answers import Answer, Sight

MAIN, REST, TEXT = range(3)


@dataclass(frozen=True)
class ParallelPaths(Method):
    """Up to decoder layer ``layer`` every second token is in a path of its own; then that path ends.

    From the paper (ParVTS, 2511.18875): two paths that do not see each other, of which one leaves after a few layers. Ours:
    both paths have the same text, where the paper fuses two copies of it; ``blind``: it sees the first path alone.
    """

    layer: int = 3
    blind: bool = False

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("lm_entry", action="sight"), Site("decoder", self.layer)]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "reduce":
            return self.reduce(tokens, site)
        sees = torch.ones(3, 3, dtype=torch.bool)
        sees[MAIN, REST] = sees[REST, MAIN] = False
        sees[TEXT, REST] = not self.blind
        return Sight(self.paths(tokens), sees)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask(self.paths(tokens) == MAIN)

    @staticmethod
    def paths(tokens: Tokens) -> torch.Tensor:
        return torch.where(tokens.index % 2 == 0, MAIN, REST)
