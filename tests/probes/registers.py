"""Tokens that an image has in the vision tower and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate import Host, Method, Reduction, Site, Tokens
from foveate.answers import Answer, Append


@dataclass(frozen=True)
class Registers(Method):
    """Each image has ``count`` registers from vision block ``block`` on; all of its patches see them, and they see each other.

    From the paper (Vision Transformers Need Registers, 2309.16588): learned tokens beside the patches, dropped at the end.
    Ours: they are noise, where the paper trains them; with ``cut``, half of all that is there leaves before that block.
    """

    count: int = 2
    block: int = 0
    at: tuple[float, float] | None = None
    cut: int | None = None

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.append(self.block), *([] if self.cut is None else [Site.tower(self.cut, 0.5)])]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "reduce":
            return self.reduce(tokens, site)
        spans = len(tokens.counts)
        coords = None if self.at is None else torch.tensor(self.at).expand(spans, self.count, 2)
        return Append(self.drawn(tokens).expand(spans, -1, -1), coords=coords)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_best(-((tokens.index * 7) % 5).float() + 3.0 * tokens.appended, site)

    def drawn(self, tokens: Tokens) -> torch.Tensor:
        """``(V, C)`` what training would have found."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(self.count, tokens.hidden.shape[1], generator=generator)
        return drawn.to(tokens.hidden)
