"""SnapKV (arXiv 2404.14469), on visual tokens: each layer's cache keeps what the question looked at, and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate import Signal, Site, Tokens
from foveate.ops.segments import pool
from foveate.pruners import CachePruner


@dataclass(frozen=True)
class SnapKV(CachePruner):
    """When the prompt has ended, each layer's cache keeps the visual tokens that its observation window attends to most.

    From the paper: the votes are the attention of the prompt's last tokens, pooled over neighbours so that what belongs
    together stays together; every layer decides for itself. Ours: heads vote together, as all heads of a layer hold the same
    tokens; text always stays, and is not counted.

    Attributes:
        layers: which caches; by default all of them.
        ratio: share of an image's tokens that a layer's cache keeps; by default 0.5.
        window: queries that vote, the last ones of the prompt.
        kernel: width of the pooling, in tokens.
    """

    window: int = 16
    kernel: int = 3

    signals: ClassVar[tuple[Signal | str, ...]] = ("text_rows",)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        asked = tokens.text_rows > 0  # rows that a shorter question does not have are zero
        rank = asked.long().flip(1).cumsum(1).flip(1)
        votes = (tokens.text_rows * (rank <= self.window)).sum(1)
        return pool(votes, tokens.counts, self.kernel)
