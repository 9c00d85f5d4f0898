"""PruneSID: principal components group the tokens, and each group keeps what its better tokens do not resemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Host, Paper, Site
from foveate.ops import diverse, select, spectrum
from foveate.ops.segments import segment_ids, segment_sum
from foveate.pruners import EntryPruner
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class PruneSID(EntryPruner):
    """At the tower's output group the tokens by their principal component, and of each group keep its best ones that differ.

    From the paper: groups by a principal component analysis over the tokens; in a group a token is redundant if it is too much
    like a better one; a group keeps as many as are not redundant in it.
    From the authors' code: components of the sigmoid of the features, a fourth of the budget K; a token is in the group where
    its loading is largest; the CLS token's attention, in the sum over heads, says which is better; a cosine above K / 32 times
    the image's mean is too much; each group has one place, the others are shared out by the counts that are not redundant, by
    cumulative rounding, at most five for 64 tokens of the budget. 64 of 576. Ours: exact components (the code: random
    projections); what is left of the budget goes to the best tokens, those that are not redundant first (the code: to the
    largest groups, then to all of them); the CLS token is not kept; survivors in raster order; original positions; without a
    CLS token, attention received; with a 2x2 merger a token is the 2x2 block; before the projector.
    """

    usual: ClassVar[float] = 64 / 576
    paper: ClassVar[Paper] = Paper(
        "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic Importance-Diversity",
        "ICLR",
        2026,
        "2603.09480",
        "ZhengyaoFang/PruneSID",
    )

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.output(self.share, signals=("cls_row" if host.has_cls else "received",))]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.cls_row.float().sum(-1) if "cls_row" in tokens.signals else tokens.received.float()

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept, counts, paid = tokens.budget(site), tokens.counts, self.score(tokens, site)
        if kept == counts:
            return Reduction(torch.arange(len(tokens), device=paid.device), kept)
        n_groups = [max(k // 4, 1) for k in kept]
        group = spectrum.component_of(tokens.hidden.float().sigmoid(), counts, n_groups)
        fresh = diverse.not_redundant(tokens.hidden, counts, group, paid, [k / 32 for k in kept])
        quota = _quotas(fresh, group, n_groups, kept)
        place = len(tokens) * fresh.long() - select.rank_within(paid, counts)
        level = torch.where(select.rank_in_groups(place, group, len(quota)) < quota[group], 2, fresh.long())
        best_first = 2 * len(tokens) * level + place
        return Reduction(select.top_k(best_first, counts, kept), kept)

    def flops(self, tokens: Tokens, site: Site) -> int:
        if tokens.budget(site) == tokens.counts:
            return 0
        width = tokens.hidden.shape[-1]
        return spectrum.component_flops(tokens.counts, width) + diverse.not_redundant_flops(tokens.counts, width)


def _quotas(fresh: Tensor, group: Tensor, n_groups: list[int], kept: tuple[int, ...]) -> Tensor:
    """How many tokens each group keeps, ``(sum(n_groups),)``, by the counts of its tokens that are ``fresh``."""
    image, n = segment_ids(n_groups, group.device), sum(n_groups)
    facts = torch.tensor([kept, [5 * -(-k // 64) for k in kept]], dtype=torch.float32)
    budget, most = facts.to(group.device, non_blocking=True)
    count = segment_sum(fresh.float(), group, n)
    total, least = segment_sum(count, image, len(kept)), count.clamp(max=1)
    free = (budget - segment_sum(least, image, len(kept))).clamp(min=0)
    end = count.cumsum(0) - (total.cumsum(0) - total)[image]
    share = (end * free[image] / total[image]).round() - ((end - count) * free[image] / total[image]).round()
    return torch.minimum(least + share, torch.minimum(count, most[image]))
