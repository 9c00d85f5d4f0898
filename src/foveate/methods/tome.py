"""ToMe: merge similar tokens inside every vision block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from foveate.method import Host, Paper, Site
from foveate.ops import merge
from foveate.pruners import TowerReducer, merging
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class ToMe(TowerReducer):
    """Merge a share of the tokens in every vision block, between attention and FFN, by bipartite soft matching.

    From the paper (section 3): head-mean keys as the metric, alternate tokens as the two sets, size-weighted mean, proportional
    attention, a constant number of merges per block. Ours: the number is chosen so that ``keep`` of the tokens leave the
    tower, and as merges are whole, so that the count after each block is the nearest; tokens alternate in raster order, merged
    ones at the place and position of their odd member (the code: in whatever order the last block left), and the CLS token is
    in neither set (the code: it is a source that never merges); in towers with a 2x2 patch merger a token is the 2x2 block,
    merged patch by patch. A block can at most halve the tokens, and a span keeps one at least.
    """

    paper: ClassVar[Paper] = Paper(
        "Token Merging: Your ViT But Faster", "ICLR", 2023, "2210.09461", "facebookresearch/ToMe"
    )
    proportional_attention: ClassVar[bool] = True
    usual: ClassVar[float] = 0.5
    signals: ClassVar[tuple[Signal | str, ...]] = ("keys",)

    def least(self, host: Host) -> float:
        return 0.5**host.blocks

    def blocks(self, host: Host) -> Sequence[Site]:
        return Site.cascade("tower", merging(range(host.blocks), self.share), where="mid", signals=self.signals)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        merges = self._merges(tokens, site)
        return tokens.merge_pairs(*merge.bipartite_match(tokens.keys.mean(1), tokens.counts, merges), merges)

    def flops(self, tokens: Tokens, site: Site) -> int:
        return merge.bipartite_flops(tokens.counts, self._merges(tokens, site), tokens.keys.shape[-1])

    def _merges(self, tokens: Tokens, site: Site) -> list[int]:
        """How many tokens of each span merge into others: at most half of them."""
        return [min(n - kept, n // 2) for kept, n in zip(tokens.budget(site), tokens.counts)]
