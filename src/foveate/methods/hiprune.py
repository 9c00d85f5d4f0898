"""HiPrune: objects as a middle block sees them, what is around them, and what the last block attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from foveate.errors import UnsupportedSiteError
from foveate.method import Host, Paper, Site
from foveate.ops import grid, select
from foveate.pruners import EntryPruner
from foveate.schedule import check_within, survivors
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class HiPrune(EntryPruner):
    """At the tower's output keep anchors that a middle block attends to, the cells around them, and registers of the last one.

    From the paper: middle blocks attend to objects, deep ones to global registers; attention received, mean over heads and all
    queries, so no CLS token is needed; an anchor and its 4 neighbours are a tenth of the budget. From the authors' code: the
    9th block of 24 in CLIP, the 16th of 32 in Qwen2.5-VL (they count from 1); the registers are those that the last used block
    attends to most, of what is not chosen yet. A third stays. Ours: the same share of the depth in other towers; neighbours do
    not go on at the other end of a row; where a small budget has no place for all neighbours the best registers among them
    stay; all images of the batch at once; with a 2x2 merger a token is the 2x2 block; original positions (the code renumbers
    LLaVA's).

    Attributes:
        alpha: share of the budget that is for anchors and their neighbours.
        block: vision block that finds anchors, from 0 on; by default 8 of 24, or 15 of 32. Negative: from the end.
    """

    alpha: float = 0.1
    block: int | None = None

    where: ClassVar[tuple[str, ...]] = ("block",)
    usual: ClassVar[float] = 1 / 3
    paper: ClassVar[Paper] = Paper(
        "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
        "ACL",
        2026,
        "2508.00553",
        "Danielement321/HiPrune",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the budget", alpha=self.alpha)

    def sites(self, host: Host) -> Sequence[Site]:
        usual = min(round(host.blocks * (8 / 23 if host.has_cls else 15 / 32)), host.blocks - 1)
        block = usual if self.block is None else self.block
        if not -host.blocks <= block < host.blocks:
            raise UnsupportedSiteError(
                f"hiprune: there is no vision block {block} whose output is used: there are {host.blocks}, 0 to "
                f"{host.blocks - 1}"
            )
        both = Signal("received", block % host.blocks), Signal("received", host.blocks - 1)
        return [Site.output(self.share, signals=both)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept = tokens.budget(site)
        middle, deep = (tokens.signal(each) for each in site.asked)
        n_anchors = [survivors(k, self.alpha / 5, least=0) for k in kept]
        anchors = select.top_k(middle, tokens.counts, n_anchors)
        level = grid.around(tokens.index, tokens.counts, tokens.spans.shape, anchors).long().index_fill(0, anchors, 2)
        best_first = len(tokens) * level - select.rank_within(deep, tokens.counts)
        return Reduction(select.top_k(best_first, tokens.counts, kept), kept)
