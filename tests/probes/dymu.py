"""Virtual unmerging (DyMU, 2504.17040) at one place: alike tokens merge, and stand for all of their members in the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from foveate import Host, Method, Paper, Reduction, Site, Tokens
from foveate.ops import merge


@dataclass(frozen=True)
class DyMU(Method):
    """Merge each image's most similar pairs, and let attention see every member at its own position (virtual unmerging).

    From the paper: bipartite matching by cosine, even against odd tokens; means by size; virtual token unmerging.
    Ours: the share is fixed in place of a calibrated threshold, and all merges happen at one place in place of every block.
    """

    share: float = 0.6
    at: Literal["tower_output", "lm_entry"] = "lm_entry"

    paper: ClassVar[Paper] = Paper("DyMU", "NeurIPS", 2025, "2504.17040", "MikeWangWZHL/dymu")

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site(self.at, keep=self.share)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        merges = [n - max(kept, n - n // 2) for kept, n in zip(tokens.budget(site), tokens.counts)]
        return tokens.merge_pairs(*merge.bipartite_match(tokens.hidden, tokens.counts, merges), merges)

    def flops(self, tokens: Tokens, site: Site) -> int:
        merges = [min(n - kept, n // 2) for kept, n in zip(tokens.budget(site), tokens.counts)]
        return merge.bipartite_flops(tokens.counts, merges, tokens.hidden.shape[-1])
