"""FEATHER: attention without positions ranks the tokens, and a coarse grid of the image stays beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import select
from foveate.ops.segments import segment_sum
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class Feather(DecoderPruner):
    """Before two layers keep what the last token looks at when positions are left out; at the first one, a grid as well.

    From the paper: with rotary embeddings, early layers look at what is near, the bottom of the image, so attention ranks
    without them; an even grid covers the rest at the first cut, and the second one comes late enough to do without it. From the
    authors' code: attention of the last token, softmax over the image alone, mean over heads; before layer 8 of 32 the best 30
    % stay, and every third token of every third row; before layer 16, the best 9 % of these. Ours: it is the attention of the
    layer to come (the code: of the layer before, to what has entered that one); counts are exact, so the grid and the best of
    the others together are the share that the code has of both on average; if the grid is more than the budget, its best.

    Attributes:
        layers: decoder layers before which tokens leave; by default at 1/4 and 1/2 of the depth.
        ratios: share of the tokens present that survives at each of them; by default 0.38 and 0.09.
        stride: rows and columns from one token of the grid to the next.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    stride: int = 3

    signals: ClassVar[tuple[Signal | str, ...]] = ("unrotated_row",)
    paper: ClassVar[Paper] = Paper(
        "Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model Acceleration",
        "ICCV",
        2025,
        "2412.13180",
        "markendo/FEATHER",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise ConfigError(f"feather: stride={self.stride}: give the rows from one token of the grid to the next")

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((8, 16), (0.38, 0.09), 32, host.layers)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        paid, n = tokens.signal("unrotated_row").float(), len(tokens.counts)
        total = segment_sum(paid, tokens.segment, n).clamp(min=torch.finfo(paid.dtype).tiny)
        return (paid / total[tokens.segment]).mean(-1)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        score, kept = self.score(tokens, site), tokens.budget(site)
        if len(site.shares) > 1:  # the grid is for the first cut
            return tokens.keep_best(score, site)
        width = torch.tensor([width for _, width in tokens.spans.shape], dtype=torch.long)
        width = width.to(score.device, non_blocking=True)[tokens.segment]
        grid = (tokens.index // width % self.stride == 0) & (tokens.index % width % self.stride == 0)
        best_first = len(tokens) * grid.long() - select.rank_within(score, tokens.counts)
        return Reduction(select.top_k(best_first, tokens.counts, kept), kept)
