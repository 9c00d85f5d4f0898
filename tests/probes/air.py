"""AIR (ICLR 2026, 2602.24041): text gets those parts of an image once more that are like its most unusual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, silu

from foveate import Host, Method, Paper, Site, Tokens
from foveate.answers import Remember
from foveate.method import Unit
from foveate.site import Into


@dataclass(frozen=True)
class AIR(Method):
    """Windows of an image that are near its outliers are added beside the FFN of late ``layers``, for the text after it.

    From the paper, at second hand (its code is not released, so this is a reconstruction): the ``outliers`` are the visual
    tokens furthest from their mean; patches of the image whose optimal-transport distance to these (Sinkhorn) is at most
    ``tau`` are kept as Z; the FFN's output gets phi(x Z^T) Z. Ours: windows of visual tokens stand for the paper's crops, which
    are encoded again; ``tau`` counts mean distances; the rows of Z have unit length; x is the text itself.
    """

    layers: tuple[int, ...] = (3, 4, 5)
    outliers: int = 4
    window: int = 2
    tau: float = 1.0
    epsilon: float = 0.1
    into: Into = "text"

    unit: ClassVar[Unit] = "none"  # it removes nothing
    paper: ClassVar[Paper] = Paper("AIR: adaptive visual reinforcement", "ICLR", 2026, "2602.24041")

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.remember(), *(Site.inject(layer, self.into) for layer in self.layers)]

    def remember(self, tokens: Tokens, site: Site) -> Remember:
        places = tokens.coords[:, 1:].long() // self.window
        images = zip(tokens.hidden.split(list(tokens.counts)), places.split(list(tokens.counts)))
        kept = [self.near(image, windows) if len(image) else image for image, windows in images]
        return Remember(torch.cat(kept), tuple(map(len, kept)))

    def near(self, image: Tensor, places: Tensor) -> Tensor:
        """The tokens of an image ``(N, C)`` that are in windows near its outliers."""
        unusual = (image - image.mean(0)).norm(dim=-1).topk(min(self.outliers, len(image))).indices
        unit, (windows, window) = normalize(image, dim=-1), places.unique(dim=0, return_inverse=True)
        costs = (1 - unit[unusual] @ unit.T).float()
        distances = torch.stack([self.transport(costs[:, window == w]) for w in range(len(windows))])
        return unit[(distances <= self.tau * distances.mean())[window]]

    def transport(self, costs: Tensor, rounds: int = 20) -> Tensor:
        """The entropic transport distance of two sets of tokens with these ``costs (Q, P)``, who all weigh the same."""
        near = -costs / self.epsilon
        for _ in range(rounds):
            near = near - near.logsumexp(1, keepdim=True) - log(len(costs))
            near = near - near.logsumexp(0, keepdim=True) - log(costs.shape[1])
        return (near.exp() * costs).sum()

    def inject(self, x: Tensor, memory: Tensor, site: Site) -> Tensor:
        return silu(x @ memory.T) @ memory

    def flops(self, tokens: Tokens, site: Site) -> int:
        return 2 * tokens.hidden.shape[-1] * sum(min(self.outliers, n) * n for n in tokens.counts)

    def inject_flops(self, x: Tensor, memory: Tensor, site: Site) -> int:
        return 4 * x.numel() * len(memory)
