"""FastV: the last token's attention in an early layer ranks the visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.method import Host, Method, Site
from foveate.tokens import Tokens


@dataclass(frozen=True)
class FastV(Method):
    """Before decoder layer ``layer``, keep the visual tokens that the last text token attends to most.

    "An Image is Worth 1/2 Tokens After Layer 2" (arXiv 2403.06764, ECCV 2024), section 4.1.
    From the paper: the layer and the ratio (K=2, R=50 %). From the authors' code: attention of layer ``layer - 1``,
    mean over heads, query = the last token; original position ids are kept. Ours: one attention row is computed, not a
    map, so fast attention kernels stay on; the budget is per span.

    Attributes:
        keep: share of each span that survives.
        layer: decoder layer before which the others leave (K).
    """

    keep: float = 0.5
    layer: int = 2

    paper: ClassVar[str] = "FastV (ECCV 2024, 2403.06764)"

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", self.layer, self.keep, signals=("last_row",))]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.last_row.mean(-1)
