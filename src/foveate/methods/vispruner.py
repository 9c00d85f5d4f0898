"""VisPruner: half of what stays is what the CLS token looks at, the rest is what is left when duplicates have gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import diverse, select
from foveate.ops.segments import offsets, ranges
from foveate.pruners import EntryPruner
from foveate.schedule import check_ratio, survivors
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class VisPruner(EntryPruner):
    """At the tower's output keep the tokens that receive most attention, and of the others those that no other one resembles.

    From the paper (section 3): half of the survivors are important, by attention of the CLS token; the others are diverse: what
    has a near duplicate is dropped, a few at a time, until the budget is reached. 64 of 576 stay at 88.9 %.
    From the authors' code: mean over heads in the last block whose output is used; the others stand in the order of their
    attention, every second one is compared with those between, by cosine of the tower's features, and the 8 with the best match
    leave; those that stay stand first in the next round, the most alike first. Ours: an odd number of tokens does not fail; all
    images of the batch at once; original positions (``positions="native"`` gives theirs); without a CLS token, attention
    received; with a 2x2 merger a token is the 2x2 block; counts are the nearest.

    Attributes:
        important: share of the survivors that attention chooses.
        step: tokens that leave in each round.
    """

    important: float = 0.5
    step: int = 8

    usual: ClassVar[float] = 64 / 576
    paper: ClassVar[Paper] = Paper(
        "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
        "ICCV",
        2025,
        "2412.01818",
        "Theia-4869/VisPruner",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("important", self.important)
        if self.step < 1:
            raise ConfigError(f"vispruner: step={self.step}: give the tokens that leave in each round, at least 1")

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site.output(self.share, signals=("cls_row" if host.has_cls else "received",))]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.cls_row.float().mean(-1) if "cls_row" in tokens.signals else tokens.received.float()

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept = tokens.budget(site)
        n_best, n_others, n_diverse = self._counts(tokens, kept)
        order, starts = select.best_first(self.score(tokens, site), tokens.counts), offsets(tokens.counts)[:-1]
        best = order[ranges(starts, n_best, order.device)]
        others = order[ranges([start + n for start, n in zip(starts, n_best)], n_others, order.device)]
        unlike = diverse.without_duplicates(tokens.hidden[others], n_others, n_diverse, self.step)
        return Reduction(torch.cat([best, others[unlike]]).sort().values, kept)

    def _counts(self, tokens: Tokens, kept: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
        """Of each image, how many attention chooses, how many others there are, and how many of these stay."""
        n_best = [survivors(k, self.important, least=0) for k in kept]
        n_others, n_diverse = ([n - best for n, best in zip(of, n_best)] for of in (tokens.counts, kept))
        return n_best, n_others, n_diverse

    def flops(self, tokens: Tokens, site: Site) -> int:
        _, n_others, n_diverse = self._counts(tokens, tokens.budget(site))
        return diverse.without_duplicates_flops(n_others, n_diverse, tokens.hidden.shape[-1])
