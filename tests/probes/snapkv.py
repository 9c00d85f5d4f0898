"""SnapKV (arXiv 2404.14469), on visual tokens: each layer's cache keeps what the question looked at, and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import Host, Method, Site, Tokens
from foveate.method import Unit


@dataclass(frozen=True)
class SnapKV(Method):
    """When the prompt has ended, each layer's cache keeps the visual tokens that its observation window attends to most.

    From the paper: the votes are the attention of the prompt's last tokens, pooled over neighbours so that what belongs
    together stays together; every layer decides for itself. Ours: heads vote together, as all heads of a layer hold the same
    tokens; text always stays, and is not counted.

    Attributes:
        ratio: share of an image's tokens that a layer's cache keeps.
        layers: which caches; none: all of them.
        window: queries that vote, the last ones of the prompt.
        kernel: width of the pooling, in tokens.
    """

    ratio: float = 0.5
    layers: tuple[int, ...] = ()
    window: int = 16
    kernel: int = 3

    unit: ClassVar[Unit] = "cache"

    def sites(self, host: Host) -> Sequence[Site]:
        layers = self.layers or range(host.layers)
        return [Site.cache(layer, self.ratio, signals=("text_rows",)) for layer in layers]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        asked = tokens.text_rows > 0  # rows that a shorter question does not have are zero
        rank = asked.long().flip(1).cumsum(1).flip(1)
        votes = (tokens.text_rows * (rank <= self.window)).sum(1)
        reach = self.kernel // 2
        place = torch.arange(len(votes), device=votes.device)
        around = (place[:, None] + torch.arange(-reach, reach + 1, device=votes.device)).clamp(0, len(votes) - 1)
        same = tokens.segment[around] == tokens.segment[:, None]
        return torch.where(same, votes[around], 0.0).amax(1)
