"""HoloV: every part of an image keeps as many tokens as it receives attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import select
from foveate.ops.segments import segment_ids, segment_mean
from foveate.pruners import EntryPruner
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class HoloV(EntryPruner):
    """At the tower's output share out the budget over crops of the image by their mean attention, and keep the best of each.

    From the paper: tokens of the whole scene stay, not only those of the regions that attention is drawn to.
    From the authors' code: 16 crops, runs of tokens in raster order; each has its share of the budget, rounded down, and the
    best crops have one more each; in a crop stay the tokens with most attention of the CLS token; 64 of 576 (LLaVA). Its score
    of a crop adds the variance of cosines in it, rescaled to the mean attention of the same crop: that is a factor of 1.09 for
    all of them, which changes no share, so it is not computed here. Ours: crops of one token are scored as others are; what a
    crop cannot use goes to the best tokens of the others (the code fills up with zeros); survivors in raster order; original
    positions; without a CLS token, attention received; with a 2x2 merger a token is the 2x2 block; before the projector.

    Attributes:
        crops: parts of an image.
    """

    crops: int = 16

    usual: ClassVar[float] = 64 / 576
    paper: ClassVar[Paper] = Paper(
        'Don\'t Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context Retention',
        "NeurIPS",
        2025,
        "2510.02912",
        "obananas/HoloV",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops < 1:
            raise ConfigError(f"holov: crops={self.crops}: give the parts of an image, at least 1")

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.output(self.share, signals=("cls_row" if host.has_cls else "received",))]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.cls_row.float().mean(-1) if "cls_row" in tokens.signals else tokens.received.float()

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept, counts, paid = tokens.budget(site), tokens.counts, self.score(tokens, site)
        sizes = [n // self.crops + (i < n % self.crops) for n in counts for i in range(self.crops)]
        crop, device = segment_ids(sizes, paid.device), paid.device
        weight = segment_mean(paid, crop, len(sizes)).view(-1, self.crops)
        budget = torch.tensor(kept, dtype=torch.float32).to(device, non_blocking=True)
        quota = (weight / weight.sum(1, True).clamp(min=torch.finfo(weight.dtype).tiny) * budget[:, None]).floor()
        more = (budget - quota.sum(1)).repeat_interleave(self.crops)
        turn = select.rank_within(weight.flatten(), [self.crops] * len(counts))
        quota = quota.flatten() + (turn < more)
        chosen = select.rank_in_groups(paid, crop, len(sizes)) < quota[crop]
        best_first = len(tokens) * chosen.long() - select.rank_within(paid, counts)
        return Reduction(select.top_k(best_first, counts, kept), kept)
