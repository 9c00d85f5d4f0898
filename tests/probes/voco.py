"""Tokens that read an image, and that the text reads in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate import Host, Method, Reduction, Site, Tokens
from foveate.answers import Answer, Append, Sight

IMAGE, VOCO, TEXT = range(3)


@dataclass(frozen=True)
class VoCo(Method):
    """Behind every image come ``count`` tokens that alone see it; when the prompt has ended, its keys leave the cache.

    From the paper (VoCo-LLaMA, 2406.12275): text does not see an image, but the tokens that have read it, and only these stay
    in the cache. Ours: they are noise, where the paper trains them; with ``layer`` the image leaves before that decoder layer
    already. From the authors' code, not followed: there, what stands before an image is hidden from the text as well.
    """

    count: int = 2
    layer: int | None = None
    hides: bool = True

    def sites(self, host: Host) -> Sequence[Site]:
        sight = [Site("lm_entry", action="sight")] if self.hides else []
        leaves = [Site("cache", i) for i in range(host.layers)]
        if self.layer is not None:
            leaves = [Site("decoder", self.layer)] if self.layer < host.layers else []
        return [Site("lm_entry", action="append"), *sight, *leaves]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "append":
            return Append(self.drawn(tokens).expand(len(tokens.counts), -1, -1))
        if site.action == "sight":
            sees = torch.ones(3, 3, dtype=torch.bool)
            sees[TEXT, IMAGE] = False
            return Sight(torch.where(tokens.appended, VOCO, IMAGE), sees)
        return self.reduce(tokens, site)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return tokens.keep_mask(tokens.appended)

    def drawn(self, tokens: Tokens) -> torch.Tensor:
        """``(V, C)`` what training would have found."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(self.count, tokens.hidden.shape[1], generator=generator)
        return drawn.to(tokens.hidden)
