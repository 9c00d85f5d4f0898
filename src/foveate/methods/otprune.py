"""OTPrune: the tokens that stay are spread as all of them are, by the volume that they span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.errors import ConfigError
from foveate.method import Paper, Site
from foveate.ops import diverse
from foveate.ops.segments import segment_sum
from foveate.pruners import EntryPruner
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class OTPrune(EntryPruner):
    """Where image and text meet, greedily keep the tokens whose products with all tokens span the largest volume.

    From the paper: what is kept should be distributed as all tokens are, with the least optimal transport between the two; that
    is bounded by a log-determinant, which is submodular, so it is maximised greedily, with an incremental Cholesky factor.
    From the authors' code: each channel is divided by its norm over the image's tokens; with ``G`` the products of all pairs of
    tokens, it is the determinant of the chosen rows and columns of ``I + gamma * G @ G``, with 0.01 for gamma; 9.8 % stay, as
    the projector puts them out. Ours: all images of the batch at once, each by itself, and every frame of a video; a token that
    would add nothing cannot be, as the identity adds to it, so the code's second start is never needed; original positions.

    Attributes:
        gamma: how much products count beside the identity.
    """

    gamma: float = 0.01

    usual: ClassVar[float] = 0.098
    paper: ClassVar[Paper] = Paper(
        "OTPrune: Distribution-Aligned Visual Token Pruning via Optimal Transport",
        "CVPR",
        2026,
        "2602.20205",
        "xiwenc1/OTPrune",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma <= 0:
            raise ConfigError(f"otprune: gamma={self.gamma}: give how much products count beside the identity, above 0")

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept, counts = tokens.budget(site), tokens.counts
        if kept == counts:
            return Reduction(torch.arange(len(tokens), device=tokens.index.device), kept)
        x = tokens.hidden.float()
        size = segment_sum(x.square(), tokens.segment, len(counts)).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        return Reduction(diverse.log_determinant(x / size[tokens.segment], self.gamma, counts, kept), kept)

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept = tokens.budget(site)
        if kept == tokens.counts:
            return 0
        return diverse.log_determinant_flops(tokens.counts, kept, tokens.hidden.shape[-1])
