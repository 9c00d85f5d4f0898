"""AnchorPrune: what bears on the question stays for sure, and beside it what is important and new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import diverse, select
from foveate.ops.pairs import best_column, cosines, products
from foveate.ops.segments import offsets, ranges
from foveate.pruners import EntryPruner
from foveate.schedule import check_within, survivors
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class AnchorPrune(EntryPruner):
    """Where image and text meet, keep the tokens most like a word of the question; then important ones, far from all kept.

    From the paper: anchors, which the question asks for, are protected, however alike they are, as many as bring something new;
    then the token with the largest product of importance and distance follows, one by one. From the authors' code: a token's
    relevance is its largest cosine with a word's embedding, as it enters the language model (Qwen2.5-VL); 10/64 of the budget
    are anchors in any case, half of it at most; of those in between, in the order of their relevance, all are up to the third
    one that has a cosine distance above ``tau`` from these 10/64; importance is attention in the tower's last block, of the CLS
    token, mean over heads, or attention received; distances above 1 count as 1; 64 of 576. Ours: so with a CLS token, too (the
    code, in LLaVA: minus the cosine in the space of CLIP, whose text tower it loads), and distances of projected features
    (there: of the tower's); without a question, the most important tokens are the anchors; all images of the batch at once;
    original positions.

    Attributes:
        anchors: share of the budget that is anchors in any case.
        most: share of it that can be.
        tau: distance from the first anchors above which a token is new.
        patience: the anchors end with so many new ones.
    """

    anchors: float = 10 / 64
    most: float = 0.5
    tau: float = 0.2
    patience: int = 3

    usual: ClassVar[float] = 64 / 576
    paper: ClassVar[Paper] = Paper(
        "AnchorPrune: Relevance-Anchored Contextual Expansion for Visual Token Pruning",
        "ECCV",
        2026,
        "2607.07033",
        "MULTI-cau/AnchorPrune",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the budget", anchors=self.anchors, most=self.most)
        check_within("a distance", inf, tau=self.tau)
        if self.patience < 1:
            raise ConfigError(f"anchorprune: patience={self.patience}: give at least 1, the new token that ends it")

    def sites(self, host: Host) -> Sequence[Site]:
        paid = Signal("cls_row" if host.has_cls else "received", at="tower")
        return [Site.entry(self.share, signals=("text", "text_place", paid) if self.share else ())]

    def relevance(self, tokens: Tokens, importance: Tensor) -> Tensor:
        """How much each token is like the word that is most like it, ``(N,)``; without words, how important it is."""
        place = tokens.text_place
        words = pad(normalize(tokens.text.float(), dim=-1), (0, 0, 0, 1))  # the last one: none
        alike = normalize(tokens.hidden.float(), dim=-1) @ words.T
        own = torch.zeros(len(place), len(words), dtype=torch.bool, device=alike.device)
        own.scatter_(1, torch.where(place < 0, len(words) - 1, place), True)[:, -1] = False
        best = alike.masked_fill(~own[tokens.sample], -2.0).amax(1)
        return torch.where(best > -2, best, importance)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept, counts = tokens.budget(site), tokens.counts
        if kept == counts:
            return Reduction(torch.arange(len(tokens), device=tokens.index.device), kept)
        paid = tokens.signal(site.asked[-1]).float().view(len(tokens), -1).mean(-1)
        order, starts = select.best_first(self.relevance(tokens, paid), counts), offsets(counts)[:-1]
        sure, device = self._sure(kept), order.device
        first = order[ranges(starts, sure, device)].sort().values
        anchors = order[ranges(starts, self._anchors(tokens, order, starts, kept), device)]
        ahead = torch.zeros_like(order, dtype=torch.bool).index_fill(0, anchors, True)
        keep = diverse.weighted_spread(tokens.hidden, paid, counts, kept, first, sure, most=1.0, ahead=ahead)
        return Reduction(keep, kept)

    def _sure(self, kept: Sequence[int]) -> list[int]:
        """How many anchors each image has in any case."""
        return [min(k, survivors(k, self.anchors) or 1) for k in kept]

    def _anchors(self, tokens: Tokens, order: Tensor, starts: list[int], kept: Sequence[int]) -> list[int]:
        """How many anchors each image has; asks the device."""
        sure = self._sure(kept)
        first = torch.zeros(len(tokens) + 1, dtype=torch.bool, device=order.device)
        first = first.index_fill(0, order[ranges(starts, sure, order.device)], True)

        def nearest(cosine: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor]:
            return (best_column(cosine, first[column][:, None], column)[0],)

        (alike,) = cosines(tokens.hidden, tokens.counts).ask(nearest)
        new = (1 - alike > self.tau)[order].tolist()
        found, able = list[int](), [max(few, int(self.most * k)) for few, k in zip(sure, kept)]
        for start, few, most in zip(starts, sure, able):
            places = [i for i in range(few, most) if new[start + i]]
            found.append(places[self.patience - 1] + 1 if len(places) >= self.patience else most)
        return found

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept, counts, width = tokens.budget(site), tokens.counts, tokens.hidden.shape[-1]
        if kept == counts:
            return 0
        work = diverse.weighted_spread_flops(counts, kept, width, self._sure(kept))
        return work + products(counts, width, questions=1) + 2 * len(tokens) * (len(tokens.text) + 1) * width
