"""MustDrop: what looks alike merges early in the tower, what the question ignores leaves, and what the tower looks at stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import select, windows
from foveate.ops.segments import segment_ids, segment_sum
from foveate.pruners import DecoderPruner
from foveate.schedule import COSINE, Schedule, check_within
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class MustDrop(DecoderPruner):
    """Merge windows of like tokens in the tower, and drop in the decoder what no word, and not all of them together, look at.

    From the paper and the authors' code: after the first vision block, windows of 3x3 tokens become their mean if the mean
    cosine of their pairs is at least ``alike``; the 8 % that the CLS token looks at most in the last block never leave; after
    layers 2, 6, 10 and 14 of 32 a token leaves if all words together pay it less than ``together`` of what they pay to the
    image, and no word ``alone`` or more (0.001 each, for 192 of 576 tokens); what leaves late leaves the caches of these
    layers, too. Ours: a score is the larger of both in units of these limits, so ``threshold`` 1 is both, and ``keep`` ranks by
    it; nothing merges in the tower then; means stand in the middle of windows (the code: in front); without a CLS token,
    attention received.

    Attributes:
        layers: decoder layers before which tokens leave; by default 3, 7, 11 and 15 of 32.
        ratios: share of the tokens present that survives at each of them; by default as the threshold says.
        threshold: score from which on tokens stay; by default 1, where nothing else says how many.
        together: share of the attention of all words below which a token may leave.
        alone: attention of any word below which it may.
        alike: mean cosine from which on a window merges; 1: none does.
        key: share of the tokens that never leave.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    threshold: float | None = None
    together: float = 0.001
    alone: float = 0.001
    alike: float = 0.8
    key: float = 0.08

    usual_threshold: ClassVar[float | None] = 1.0
    pooled: ClassVar[bool] = True  # of what words pay to all of it
    paper: ClassVar[Paper] = Paper(
        "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
        "arXiv",
        2024,
        "2411.10803",
        "liuting20/MustDrop",
    )
    signals: ClassVar[tuple[Signal | str, ...]] = ("text_rows",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of attention", together=self.together, alone=self.alone)
        check_within(COSINE, alike=self.alike)
        check_within("a share of the tokens", key=self.key)
        if not (self.together and self.alone):
            raise ConfigError("mustdrop: a limit of 0 is none: give more, of `together` and of `alone`")

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((3, 7, 11, 15), (0.62,) * 4, 32, host.layers, first=1)

    def sites(self, host: Host) -> Sequence[Site]:
        cuts, free = list(super().sites(host)), self.cut is not None
        paid = (Signal("cls_row" if host.has_cls else "received", at="tower"),) if self.key else ()
        cuts[0] = replace(cuts[0], signals=(*cuts[0].signals, *paid) if cuts[0].signals else ())
        tower = [Site.tower(1)] if free and self.alike < 1 and host.blocks > 1 else []
        curve, first, last = self.plan(host).curve(host.depth), cuts[0].layer, cuts[-1].layer
        held = {i: curve[last] / curve[i] if curve[i] else 0.0 for i in host.growing_caches if first - 1 <= i < last}
        return [*tower, *cuts, *(Site.cache(i, share) for i, share in held.items() if free or share < 1)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.at == "tower":
            return self._merged(tokens)
        seen = tokens.state.setdefault("left", {})
        if site.at == "cache":
            return tokens.keep_chosen(seen[max(seen)])
        reduction = super().reduce(tokens, site)
        seen[site.layer] = [*seen.get(site.layer, ()), tokens.name[reduction.keep]]  # a prompt may come in chunks
        return reduction

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        """How far each token is above the limits, the larger of both; of those that never leave it is infinite."""
        paid, pools = tokens.text_rows.float(), tokens.pool_counts
        all_, of = paid.sum(1), segment_ids(pools, paid.device)
        total = segment_sum(all_, of, len(pools))[of]
        alone = pad(paid, (0, 1)).amax(1).masked_fill(total == 0, torch.inf) / self.alone  # inf: there is no word
        score = torch.maximum((all_ / total).nan_to_num() / self.together, alone)
        for each in (each for each in site.asked if each.at):
            looked_at = tokens.signal(each)[..., None].float().flatten(1).mean(1)  # over heads, if there are
            best = select.top_k(looked_at, pools, [math.ceil(self.key * k) for k in pools])
            tokens.state.setdefault("key", []).append(tokens.name[best])
        key = [tokens.name[:0], *tokens.state.get("key", ())]
        return score.masked_fill(torch.isin(tokens.name, torch.cat(key)), torch.inf)

    def _merged(self, tokens: Tokens) -> Reduction:
        shapes, unit = tokens.spans.shape, normalize(tokens.hidden.float(), dim=-1)
        n = len(shapes) * (most := windows.most(shapes, 3))
        group = tokens.segment * most + windows.places(tokens.index, tokens.segment, shapes, 3)[0]
        size = segment_sum(torch.ones_like(group), group, n)
        alike = (segment_sum(unit, group, n).square().sum(-1) - size) / (size * (size - 1)).clamp(min=1)
        merges = ((size > 1) & (alike >= self.alike))[group]
        middle = select.rank_in_groups(-tokens.index.float(), group, n) == (size // 2)[group]
        left = tokens.keep_mask(~merges | middle)
        place = select.rank(left.keep, len(tokens))
        of_window = torch.zeros_like(size).index_copy(0, group[left.keep], place[left.keep])
        return tokens.merge_into(left.keep, left.counts, torch.where(merges, of_window[group], place))
