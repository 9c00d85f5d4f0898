"""OTT-Vid: tokens that represent their frame, then merged along the cheapest transport from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from foveate.method import Host, Method, Paper, Site
from foveate.ops import cover, frames, grid, select, transport
from foveate.pruners import EntryPruner
from foveate.schedule import check_within, spread, survivors
from foveate.tokens import Reduction, Tokens

BEFORE = {"tower_output", "lm_entry"}


@dataclass(frozen=True)
class OTTVid(EntryPruner):
    """Keep the tokens of each frame that represent it, and merge those that cost least to carry over from the frame before.

    From the paper and the authors' code: of a share r that is to stay, each frame keeps ``r ** (1 - temporal)`` of its tokens,
    picked one by one so that the largest cosines of all its tokens with them, weighted by attention, add up to most; between
    two frames, ``a * (1 - cosine) + (1 - a) * distance``, in diagonals, is the cost, where ``a`` is 1 less half of the mean
    cosine of the same places, and entropic transport (0.1, 50 rounds) carries the tokens of the one to those of the other; of
    what is to merge a pair of frames has a part by the softmax of minus its cost over 0.2, and those tokens of the later frame
    merge that the most is carried to, each into the one that it comes from; chains become their plain mean, in their first
    frame; a fourth stays. Ours: attention received in the tower's last block, before the projector; where frames are known only
    as they enter the language model, all tokens weigh the same; all tokens have the same mass, as by default in the code;
    counts are exact. An image is a video of one frame, as is one of unknown videos, so that nothing merges.

    Attributes:
        segments: ``video``, the default: frames of a video merge; ``none``: each frame alone, as of images.
        temporal_share: how much of the reduction is between frames, as an exponent: 0 is none.
    """

    segments: Literal["video", "none"] | None = None
    temporal_share: float = 0.3

    usual: ClassVar[float] = 0.25
    fixed_budget: ClassVar[bool] = False  # of a frame
    paper: ClassVar[Paper] = Paper(
        "OTT-Vid: Optimal Transport Temporal Token Compression for Video Large Language Models",
        "arXiv",
        2026,
        "2605.11803",
        "minseokii/OTT-Vid",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the reduction", temporal_share=self.temporal_share)

    @property
    def temporal(self) -> bool:
        return self.segments == "video"

    def resolve(self, host: Host) -> Method:
        return self if self.segments else replace(self, segments="video" if host.frames & BEFORE else "none")

    def sites(self, host: Host) -> Sequence[Site]:
        if "tower_output" in host.frames or "lm_entry" not in host.frames:
            return [Site.output(self.share, signals=("received",) if self.share else ())]
        return [Site.entry(self.share)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts, kept = tokens.counts, list(tokens.budget(site))
        within = self._within(tokens, kept)
        weight = tokens.received if site.at == "tower_output" else torch.ones_like(tokens.sizes)
        best = cover.represented(tokens.hidden, weight, counts, within)
        pairs = [(a, b) for clip in tokens.spans.clips for a, b in pairwise(clip) if within[a] and within[b]]
        index = torch.arange(len(tokens), device=best.device)
        if within == kept or not pairs:
            return Reduction(best, tuple(within))
        place = grid.relative(tokens.index, counts, tokens.spans.shape)[best]
        cells = tokens.index, counts, tokens.spans.sizes
        like = 1 - frames.alike_in_place(tokens.hidden, *cells, pairs).clamp(0, 1) / 2
        cost, most, source = transport.carried(tokens.hidden[best], place, within, pairs, like, 0.1)
        costs, goes = dict(zip((later for _, later in pairs), cost.tolist())), [0] * len(counts)
        for clip in tokens.spans.clips:
            later, gone = [span for span in clip if span in costs], sum(within[span] - kept[span] for span in clip)
            few = transport.parts([costs[span] for span in later], [within[span] - 1 for span in later], gone, 0.2)
            for span, n in zip(later, few):
                goes[span] = n
        joins = select.top_k(most, within, goes)
        into = index.index_copy(0, best[joins], best[source[joins]])
        root = frames.ends(into, max(map(len, tokens.pools)))
        left = tuple(n - gone for n, gone in zip(within, goes))
        keep = best[select.top_k((root == index)[best].long(), within, left)]
        group = torch.full_like(index, len(keep)).index_copy(0, best, select.rank(keep, len(index))[root[best]])
        return tokens.merge_into(keep, left, group, "mean")

    def _within(self, tokens: Tokens, kept: list[int]) -> list[int]:
        """How many tokens each frame keeps before frames merge."""
        within = list(kept)
        for clip in tokens.spans.clips if self.temporal else ():
            own, all_ = [kept[span] for span in clip], [tokens.counts[span] for span in clip]
            if not sum(own) or len(clip) < 2:
                continue
            wanted = survivors(sum(all_), (sum(own) / sum(all_)) ** (1 - self.temporal_share))
            each = spread(max(wanted, sum(own)), all_, all_)
            if sum(each) - sum(own) <= sum(n - 1 for n in each[1:]) and min(each):  # else it is too little for that
                for span, n in zip(clip, each):
                    within[span] = n
        return within

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept, width = list(tokens.budget(site)), tokens.hidden.shape[-1]
        within = self._within(tokens, kept)
        pairs = sum(len(clip) - 1 for clip in tokens.spans.clips) if within != kept else 0
        return cover.represented_flops(tokens.counts, within, width) + 2 * pairs * max(within, default=0) ** 2 * width
