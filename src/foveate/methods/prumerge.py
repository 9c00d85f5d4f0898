"""LLaVA-PruMerge: tokens that stand out stay, each takes in those like it, and one stands for all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from foveate.method import Host, Paper, Site
from foveate.ops import neighbours, select
from foveate.ops.segments import normalise, offsets, quantile, segment_ids, segment_sum
from foveate.pruners import EntryPruner
from foveate.schedule import check_within, survivors
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class PruMerge(EntryPruner):
    """At the tower's output keep the tokens whose attention is an outlier, add to each those like it, and one for the rest.

    From the paper and the authors' code: attention of the CLS token, as one head; those more than 1.5 interquartile ranges
    above the third quartile stay; each of them gets the 32 tokens with the most similar keys added, weighted by their
    attention, and one more token is the weighted sum of all that do not stay. PruMerge+ (``plus``) keeps evenly spaced ones as
    well: every (n / outliers / 3)-th token. Ours: the last block whose output is used (the code: the one after it), the one
    head is made of the rows of several, ``softmax(sum_h log a_h / sqrt(H))``; without a CLS token, attention received; raster
    order, and the sum of the rest at the place of its best token; original positions (``positions="native"`` gives theirs);
    with a 2x2 merger a token is the 2x2 block. With ``keep`` the best ones and the sum are so many (the sum from two on), and
    of the plus half are the best and half are spaced evenly among the others (the code, where it trains: an eighth each).

    Attributes:
        threshold: interquartile ranges above the third quartile from which on a token stays; by default 1.5, without ``keep``.
        plus: keep evenly spaced tokens, too.
        near: tokens that each survivor takes in.
    """

    threshold: float | None = None
    plus: bool = False
    near: int = 32

    usual_threshold: ClassVar[float] = 1.5
    paper: ClassVar[Paper] = Paper(
        "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models",
        "ICCV",
        2025,
        "2403.15388",
        "42Shawn/LLaVA-PruMerge",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a number of tokens", inf, near=self.near)

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.output(self.share, signals=("cls_row" if host.has_cls else "received", "keys"))]

    def attention(self, tokens: Tokens) -> Tensor:
        """Attention ``(N,)`` that each token receives, as of one head; it sums to 1 in each image."""
        if "cls_row" not in tokens.signals:
            return normalise(tokens.received, tokens.counts, "sum")
        row = tokens.cls_row.float().clamp(min=torch.finfo(torch.float32).tiny).log()
        return normalise(row.sum(-1) / row.shape[-1] ** 0.5, tokens.counts, "softmax")

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        """How many interquartile ranges ``(N,)`` the attention is above the third quartile."""
        paid, counts = self.attention(tokens), tokens.counts
        q1, q3 = (quantile(paid, counts, at)[tokens.segment] for at in (0.25, 0.75))
        above = paid - q3
        return torch.where(q3 > q1, above / (q3 - q1), torch.where(above > 0, torch.inf, above.sign()))

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        n, counts, paid, best = len(tokens), tokens.counts, self.attention(tokens), self._chosen(tokens, site)
        kept = tokens.budget(site) if self.cut is None else tuple(k + (0 < k < n) for k, n in zip(best.counts, counts))
        stays = torch.zeros(n, dtype=torch.bool, device=paid.device).index_fill(0, best.keep, True)
        n_rest = [k - few for k, few in zip(kept, best.counts)]
        rest = select.top_k(paid.masked_fill(stays, -torch.inf), counts, n_rest)
        keep = torch.cat([best.keep, rest]).sort().values
        place = torch.nn.functional.pad(select.rank(keep, n), (0, 1), value=len(keep))  # the last one: none
        sums = torch.full((len(counts),), n, device=paid.device).index_copy(0, tokens.segment[rest], rest)
        group = place[torch.where(stays, torch.arange(n, device=paid.device), sums[tokens.segment])]
        x = tokens.hidden.float()
        sums = segment_sum(x * paid[:, None], group, len(keep) + 1)[:-1]
        hidden = sums.index_copy(0, place[best.keep], x[best.keep] + self._near(tokens, paid, best))
        return replace(tokens.merge_into(keep, kept, group), hidden=hidden.to(tokens.hidden.dtype))

    def _chosen(self, tokens: Tokens, site: Site) -> Reduction:
        """The tokens that stay as themselves."""
        score, counts, cut = self.score(tokens, site), tokens.counts, self.cut_at(site)
        if cut is not None:
            best = tokens.keep_above(score, cut)
            if not self.plus:
                return best
            step = torch.tensor([max(1, n // max(k, 1) // 3) for n, k in zip(counts, best.counts)])
            spaced = tokens.index % step.to(score.device, non_blocking=True)[tokens.segment] == 0
            return tokens.keep_mask(spaced.index_fill(0, best.keep, True))
        alone = tuple(k - int(1 < k < n) for k, n in zip(tokens.budget(site), counts))
        n_best = [survivors(k, 0.5) if self.plus else k for k in alone]
        keep = select.top_k(score, counts, n_best)
        others, n_others = select.complement(keep, len(tokens)), [n - k for n, k in zip(counts, n_best)]
        spaced = select.stride(n_others, [k - few for k, few in zip(alone, n_best)], keep.device)
        return Reduction(torch.cat([keep, others[spaced]]).sort().values, alone)

    def _near(self, tokens: Tokens, paid: Tensor, best: Reduction) -> Tensor:
        """What each token that stays takes in, ``(K, C)``; nothing where none leave an image."""
        keys, near = normalize(tokens.keys.float().flatten(1), dim=-1), self.near + 1  # itself is one
        index = neighbours.nearest(keys[best.keep], best.counts, keys, tokens.counts, near)
        bags = neighbours.bags(best.counts, tokens.counts, near)
        some = torch.tensor([float(k < n) for k, n in zip(best.counts, tokens.counts)])
        weight = (paid * some.to(paid.device, non_blocking=True)[tokens.segment])[index]
        weight = torch.where(index == best.keep[segment_ids(bags, index.device)], 0.0, weight)
        starts = torch.tensor(offsets(bags)[:-1], dtype=torch.long).to(index.device, non_blocking=True)
        return embedding_bag(index, tokens.hidden.float(), starts, mode="sum", per_sample_weights=weight)

    def flops(self, tokens: Tokens, site: Site) -> int:
        best = self._chosen(tokens, site)
        return neighbours.products(best.counts, tokens.counts, tokens.keys.flatten(1).shape[1])
