"""A learned scorer with a straight-through gate, and a summary of what it drops: as trained pruners and resamplers have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate import Host, Method, Reduction, Site, Tokens
from foveate.ops import select
from foveate.ops.segments import segment_mean


@dataclass(frozen=True)
class Learned(Method):
    """Keep the tokens with the highest learned score, and add to each of them a learned summary of those that leave its image.

    In training all tokens stay, and those that would leave are multiplied by 0; gradients go through the gate as if it were
    soft.

    Attributes:
        keep: share of each span that survives.
        at, layer: where.
        soft: in training, tokens stay (multiplied by their gate); else they leave there, too.
    """

    keep: float = 0.5
    at: Literal["tower", "tower_output", "lm_entry", "decoder"] = "decoder"
    layer: int = 1
    soft: bool = True

    training_free: ClassVar[bool] = False

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site(self.at, self.layer if self.at in ("tower", "decoder") else 0, self.keep)]

    def modules(self, host: Host) -> nn.ModuleDict:
        width = {"tower": host.tower_width, "tower_output": host.output_width}.get(self.at, host.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.ModuleDict({"score": nn.Linear(width, 1), "summary": nn.Linear(width, width)})

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        soft = self.learned["score"](tokens.hidden)[:, 0].sigmoid()
        chosen = tokens.keep_best(soft, site)
        hard = torch.zeros_like(soft).index_fill(0, chosen.keep, 1.0)
        gate = (hard + soft - soft.detach())[:, None]
        hidden = tokens.hidden * gate + self._summary(tokens, chosen.keep)
        if self.soft and self.learned.training:
            everything = torch.arange(len(tokens), device=hidden.device)
            return Reduction(everything, tokens.counts, torch.where(hard[:, None] > 0, hidden, tokens.hidden * gate))
        return replace(chosen, hidden=hidden[chosen.keep])

    def _summary(self, tokens: Tokens, keep: Tensor) -> Tensor:
        """``(N, C)``: for every token, what is to be added for those that leave its span."""
        gone = select.complement(keep, len(tokens))
        means = segment_mean(tokens.hidden[gone], tokens.segment[gone], len(tokens.counts))
        summary: Tensor = self.learned["summary"](means)
        return summary[tokens.segment]

    def flops(self, tokens: Tokens, site: Site) -> int:
        width = tokens.hidden.shape[-1]
        return 2 * width * (len(tokens) + len(tokens.counts) * width)
