"""Methods where a score decides who stays, and not a count: an image with much to see keeps more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import Host, Signal, Site, Tokens
from foveate.ops.segments import normalise, segment_mean
from foveate.pruners import DecoderPruner, EntryPruner
from foveate.schedule import Schedule


@dataclass(frozen=True)
class Unlike(EntryPruner):
    """Keep the tokens that are unlike the mean of their image (minus the cosine), where features and text meet."""

    threshold: float | None = None

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        hidden = tokens.hidden.float()
        mean = segment_mean(hidden, tokens.segment, len(tokens.counts))
        return -torch.cosine_similarity(hidden, mean[tokens.segment], dim=1)


@dataclass(frozen=True)
class Attended(DecoderPruner):
    """Keep the tokens that the last text token attends to as much as to the mean token, before a layer or two."""

    layers: tuple[int, ...] | None = None
    ratio: float | None = None
    threshold: float | None = None

    usual_threshold: ClassVar[float | None] = 0.0
    signals: ClassVar[tuple[Signal | str, ...]] = ("last_row",)

    def usual(self, host: Host) -> Schedule:
        return Schedule.cuts((1, host.layers // 2), 0.5)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return normalise(tokens.last_row.float().mean(-1), tokens.counts, to="deviation")
