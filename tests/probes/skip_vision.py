"""Skip-Vision (arXiv 2503.21817): most visual tokens skip the FFN of every decoder layer, and the attention of none.

From the paper: skipped tokens share the norm, the projections and the causal attention with the others, at their own positions,
and pass on the residual in place of the FFN. From the authors' code: which tokens are retained follows from their place, the
last ones of an image. Ours: how many; summaries, and the removal from the cache after the prompt, are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from foveate import Host, Site, Tokens
from foveate.pruners import SingleRatio
from foveate.units import Unit


@dataclass(frozen=True)
class SkipVision(SingleRatio):
    """Only the last ``ratio`` of each image's tokens go through the FFN of decoder layers from ``first`` on."""

    first: int = 0
    part: Literal["ffn", "attention"] = "ffn"

    unit: ClassVar[Unit] = "compute"
    usual: ClassVar[float] = 0.25

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        return [Site.skip(i, self.part, ratio) for i in range(self.first, host.layers)]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.index.float()
