"""LFTR: patches unlike the rest of their frame stay, most of them in frames unlike the one before (a reconstruction)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.errors import ConfigError
from foveate.method import Paper, Site
from foveate.ops.segments import segment_mean
from foveate.pruners import EntryPruner
from foveate.tokens import Tokens


@dataclass(frozen=True)
class LFTR(EntryPruner):
    """Keep the tokens that are most distinct in their frame, in frames that differ from the one before (a reconstruction).

    From the abstract: nothing is learned; weights come from differences and similarities between frames and between patches;
    tokens leave before the language model, up to 16 times fewer; for videos, and in its last version for images.
    Ours, as no equation can be read: where features and text meet, those with the largest product of two weights, or their
    largest ``sum``; a frame's weight is 1 minus the cosine of its mean token with that of the frame before, plus ``floor`` (the
    first frame, and an image, has weight 1); a token's is 1 minus its mean cosine with the tokens of its frame; all frames
    of a video share one budget and one ranking, so a prompt comes whole (where a family does not say which frames are of one
    video, each is an image); original position ids.

    Attributes:
        joined: the ``product`` of the two weights decides, which is the default, or their ``sum``.
        floor: weight of a frame that is the same as the one before, so that still videos keep tokens of all frames.
    """

    joined: Literal["product", "sum"] = "product"
    floor: float = 0.1

    usual: ClassVar[float] = 0.25
    pooled: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "LFTR: Learning-Free Token Reduction for Multimodal Large Language Models", "arXiv", 2025, "2501.17391"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"{self.name()}: floor={self.floor} is no weight of a frame: give 0 to 1")

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        spans, segment = len(tokens.counts), tokens.segment
        unit = normalize(tokens.hidden.float(), dim=-1)
        # The mean cosine with all of a frame is the product with the mean of its unit vectors.
        distinct = 1 - (unit * segment_mean(unit, segment, spans)[segment]).sum(-1)
        few = torch.tensor([count < 3 for count in tokens.counts]).to(distinct.device, non_blocking=True)
        same = segment_mean(distinct, segment, spans)  # of two tokens, which are equally distinct but for rounding
        distinct = torch.where(few[segment], same[segment], distinct)
        novelty = self._novelty(tokens)[segment]
        return distinct * novelty if self.joined == "product" else distinct + novelty

    def _novelty(self, tokens: Tokens) -> Tensor:
        """``(S,)``: the weight of each frame."""
        mean = normalize(segment_mean(tokens.hidden.float(), tokens.segment, len(tokens.counts)), dim=-1)
        change = 1 - (mean[1:] * mean[:-1]).sum(-1) + self.floor
        first = [clip[0] for clip in tokens.spans.clips]
        weight = torch.cat([change.new_ones(min(len(mean), 1)), change])
        return weight.index_fill(0, torch.tensor(first, dtype=torch.long).to(weight.device, non_blocking=True), 1.0)
