"""DivPrune: the most diverse subset of the projected tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.method import Paper, Site
from foveate.ops import select
from foveate.pruners import EntryPruner
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class DivPrune(EntryPruner):
    """Max-min diversity: greedily keep the token farthest (cosine) from all kept so far, where they enter the LLM.

    From the paper (section 3.2): cosine distance of projected tokens, greedy max-min, seed = the token farthest from its
    nearest neighbour, 9.8 % kept. The authors' code renumbers positions; ours keeps them by default (``positions="native"``
    gives theirs). Ours: all images of the batch at once, each by itself, and of a video every frame (the code: all visual
    tokens of a prompt together); at least one token stays of an image.
    """

    usual: ClassVar[float] = 0.098
    paper: ClassVar[Paper] = Paper(
        "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
        "CVPR",
        2025,
        "2503.02175",
        "vbdi/divprune",
    )

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site)
        return Reduction(select.farthest_point(tokens.hidden, tokens.counts, counts), counts)

    def flops(self, tokens: Tokens, site: Site) -> int:
        return select.farthest_point_flops(tokens.counts, tokens.budget(site), tokens.hidden.shape[-1])
