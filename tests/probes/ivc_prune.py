"""IVC-Prune (arXiv 2602.03060): one choice, made in the middle of the language model, cuts the caches of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import Host, Reduction, Site, Tokens
from foveate.ops.segments import segment_mean
from foveate.pruners import SingleRatio
from foveate.units import Unit


@dataclass(frozen=True)
class IVCPrune(SingleRatio):
    """Before layer ``layer`` tokens are chosen; the others leave, and when the prompt has ended they leave all caches.

    From the authors' code: the cut is made once, and applied to the caches of the layers before it as well. Ours: the choice
    itself is by the values of the layer before, compared with their mean; positions that carry rotary coordinates are not kept
    apart.

    Attributes:
        ratio: share of an image's tokens that stays; by default 0.5.
        layer: where the choice is made.
        caches: layers before it whose caches follow; none: all of them.
    """

    layer: int = 3
    caches: tuple[int, ...] = ()

    unit: ClassVar[Unit] = "cache"

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        before = self.caches or range(self.layer)
        return [
            Site.decoder(self.layer, ratio, signals=("values",)),
            *(Site.cache(layer, ratio) for layer in before),
        ]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        values = tokens.values.float().flatten(1)
        mean = segment_mean(values, tokens.segment, len(tokens.counts))
        return -torch.cosine_similarity(values, mean[tokens.segment], dim=1)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.at == "cache":
            return tokens.keep_mask(torch.isin(tokens.name, torch.cat(tokens.state["chosen"])))
        reduction = super().reduce(tokens, site)
        tokens.state.setdefault("chosen", []).append(tokens.name[reduction.keep])  # a prompt may come in chunks
        return reduction
