"""FiCoCo-V: in the vision tower, tokens that say little new are spread over those that they attend to most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import select, spreading
from foveate.ops.segments import offsets, segment_mean, segment_sum
from foveate.pruners import TowerReducer
from foveate.schedule import check_within
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

CLS = Signal("queries", of="cls")


@dataclass(frozen=True)
class FiCoCoV(TowerReducer):
    """In the second half of the vision tower, take redundant tokens away in every block, and add them to those they attend to.

    From the paper: a token is redundant that attends to its image, on average, more than the CLS token attends to it (filter);
    in every 2x2 window one token is more so than it was (local penalty), so that tokens leave everywhere; each goes to the
    targets that it attends to most, as many as are above a quantile (correlate), in proportion, and they become weighted means
    (compress). From the authors' code: both are products of queries and keys before the softmax, mean over heads, scaled to a
    length of 1 in each image; the CLS token's count ``weight``, the others the rest; the penalty is a factor of 2, the quantile
    0.998; from block 12 of the 23 that are used on, 42 of 576 tokens leave in each, between attention and FFN. Ours: targets
    are tokens that stay, and the window's most redundant token is found among those that are there; tokens stay in raster
    order. (The code that is published keeps scores of the image before, counts targets in another order than the tokens stand
    in, and puts the CLS token last.) In towers with a 2x2 patch merger a token is the 2x2 block; without a CLS token, the
    others' part alone.

    Attributes:
        weight: of the CLS token's attention; that of the image's tokens is the rest.
        penalty: how many times as redundant one token of a window is; 1: no penalty.
        quantile: of the products with all that stay, above which one is a target; the best one is in any case.
    """

    weight: float = 0.35
    penalty: float = 2.0
    quantile: float = 0.998

    usual: ClassVar[float] = 114 / 576
    paper: ClassVar[Paper] = Paper(
        "Filter, Correlate, Compress: Training-Free Token Reduction for MLLM Acceleration",
        "AAAI",
        2026,
        "2411.17686",
        "kawhiiiileo/FiCoCo",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share", weight=self.weight, quantile=self.quantile)
        if not 1 <= self.penalty < inf:
            raise ConfigError(f"ficocov: penalty={self.penalty}: give a factor, 1 or more")

    def blocks(self, host: Host) -> Sequence[Site]:
        places = range(round(host.blocks * 12 / 23), host.blocks)
        stages = [(block, 1 - (1 - self.share) * i / len(places)) for i, block in enumerate(places, 1)]
        asked = ("queries", "keys", CLS) if host.has_cls else ("queries", "keys")
        return Site.cascade("tower", stages, where="mid", signals=asked)

    def redundancy(self, tokens: Tokens) -> Tensor:
        """How little each token says that others do not, ``(N,)``."""
        queries, keys = (x.float().flatten(1) for x in (tokens.queries, tokens.keys))
        segment, n = tokens.segment, len(tokens.counts)
        paid = (queries * segment_mean(keys, segment, n)[segment]).sum(-1)
        score = (1 - self.weight) * _unit(paid, segment, n)
        if CLS in tokens.signals:
            asked = (tokens.signal(CLS).float().flatten(1)[segment] * keys).sum(-1)
            score = score - self.weight * _unit(asked, segment, n)
        worst = select.rank_in_groups(score, *_windows(tokens)) == 0
        return torch.where(worst, torch.where(score > 0, score * self.penalty, score / self.penalty), score)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept = tokens.budget(site)
        keep = select.top_k(-self.redundancy(tokens), tokens.counts, kept)
        leave = select.complement(keep, len(tokens))
        gone = [n - k for n, k in zip(tokens.counts, kept)]
        heads, width = tokens.keys.shape[1:]
        queries, keys = tokens.queries.flatten(1) / (heads * width**0.5), tokens.keys.flatten(1)
        hidden, best = spreading.spread(tokens.hidden, queries, leave, gone, keys, keep, kept, self.quantile)
        group = select.rank(keep, len(tokens)).index_copy(0, leave, best)
        return replace(tokens.merge_into(keep, kept, group), hidden=hidden)

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept = tokens.budget(site)
        gone = [n - k for n, k in zip(tokens.counts, kept)]
        return spreading.spread_flops(gone, kept, tokens.keys[0].numel(), tokens.hidden.shape[-1])


def _unit(x: Tensor, segment: Tensor, n: int) -> Tensor:
    """Scale ``x (N,)`` so that its squares in each segment add up to 1."""
    length = segment_sum(x.square(), segment, n).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    return x / length[segment]


def _windows(tokens: Tokens) -> tuple[Tensor, int]:
    """The 2x2 window of each token, ``(N,)`` int64, and how many windows there are; at an odd border they are smaller."""
    shapes = [((height + 1) // 2, (width + 1) // 2) for height, width in tokens.spans.shape]
    first = offsets([rows * columns for rows, columns in shapes])
    facts = zip(first, (columns for _, columns in shapes), (width for _, width in tokens.spans.shape))
    table = torch.tensor(list(facts), dtype=torch.long).view(-1, 3).to(tokens.index.device, non_blocking=True)
    start, columns, width = table[tokens.segment].unbind(1)
    return start + tokens.index // width // 2 * columns + tokens.index % width // 2, first[-1]
