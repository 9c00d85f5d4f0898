"""DyMU: alike tokens merge in every vision block, and attention in the LLM sees all of their members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Positions, Site
from foveate.ops import merge
from foveate.pruners import TowerReducer, merging
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class DyMU(TowerReducer):
    """Merge pairs that are alike in every vision block (DToMe); in the LLM's attention each member is at its place (VTU).

    From the paper: head-mean keys as the metric, alternate tokens as the two sets, merging of all pairs above a threshold of
    the block, at which calibration images merge as many pairs as are to merge there, so that a simple image keeps fewer tokens;
    size-weighted means; virtual unmerging: queries, keys and values of a merged token stand at the positions of all of its
    members, whose attention outputs are averaged.
    From the authors' code: between attention and FFN; proportional attention; merges only above the threshold, at most half of
    the tokens of a block; 192 of 576 tokens as the middle setting; the expanded keys and values are cached, so virtual
    unmerging saves projections and FFNs of the language model, not cache or attention (``positions="keep"`` saves those, too).
    Ours: thresholds are of the distance (the code's: of the cosine, at least 0); `foveate.dial.with_threshold` finds them, from
    the first block to the last, on all of your images at once (the code: the mean of what batches say). Without a threshold,
    ``keep`` counts merges as ToMe's do, the same number in each block. Tokens alternate in raster order, the CLS token is in
    neither set; in towers with a 2x2 patch merger a token is the 2x2 block, merged patch by patch. A threshold asks the device
    once a block.

    Attributes:
        threshold: cosine distance from its partner from which on a token stays by itself, 0 to 2, for each vision block or
            one for all: 0 merges none, more than 2 as many as can be.
    """

    threshold: float | tuple[float, ...] | None = None
    positions: Positions = field(default="virtual", kw_only=True)

    usual: ClassVar[float] = 192 / 576
    proportional_attention: ClassVar[bool] = True
    signals: ClassVar[tuple[Signal | str, ...]] = ("keys",)
    paper: ClassVar[Paper] = Paper(
        "DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs",
        "NeurIPS",
        2025,
        "2504.17040",
        "MikeWangWZHL/dymu",
    )

    def least(self, host: Host) -> float:
        return 0.5**host.blocks

    def blocks(self, host: Host) -> Sequence[Site]:
        if isinstance(self.threshold, tuple) and len(self.threshold) != host.blocks:
            raise ConfigError(
                f"dymu: threshold has {len(self.threshold)} numbers, and {host.blocks} vision blocks merge: give one for each, "
                "or a single one for all"
            )
        return Site.cascade("tower", merging(range(host.blocks), self.share), where="mid", signals=self.signals)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        metric, cut = tokens.keys.mean(1), self.cut_at(site)
        if cut is not None:
            return tokens.merge_pairs(*merge.match_nearer(metric, tokens.counts, cut))
        merges = self._merges(tokens, site)
        return tokens.merge_pairs(*merge.bipartite_match(metric, tokens.counts, merges), merges)

    def margins(self, tokens: Tokens, site: Site) -> Tensor:
        return merge.distances_to_partners(tokens.keys.mean(1), tokens.counts)

    def flops(self, tokens: Tokens, site: Site) -> int:
        return merge.bipartite_flops(tokens.counts, self._merges(tokens, site), tokens.keys.shape[-1])

    def _merges(self, tokens: Tokens, site: Site) -> list[int]:
        """How many tokens of each span merge into others: at most half of them, where a threshold decides."""
        kept = tokens.budget(site) if self.cut is None else (0,) * len(tokens.counts)
        return [min(n - few, n // 2) for few, n in zip(kept, tokens.counts)]
