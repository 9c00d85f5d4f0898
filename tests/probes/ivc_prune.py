"""IVC-Prune (arXiv 2602.03060): one choice, made in the middle of the language model, cuts the caches of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate import Host, Method, Reduction, Site, Tokens


@dataclass(frozen=True)
class IVCPrune(Method):
    """Before layer ``layer`` tokens are chosen; the others leave, and when the prompt has ended they leave all caches.

    From the authors' code: the cut is made once, and applied to the caches of the layers before it as well. Ours: the choice
    itself is by the values of the layer before, compared with their mean; positions that carry rotary coordinates are not kept
    apart.

    Attributes:
        ratio: share of an image's tokens that stays.
        layer: where the choice is made.
        caches: layers before it whose caches follow; none: all of them.
    """

    ratio: float = 0.5
    layer: int = 3
    caches: tuple[int, ...] = ()

    def sites(self, host: Host) -> Sequence[Site]:
        before = self.caches or range(self.layer)
        return [
            Site.decoder(self.layer, self.ratio, signals=("values",)),
            *(Site.cache(layer, self.ratio) for layer in before),
        ]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        values = tokens.values.float().flatten(1)
        counts = torch.tensor(tokens.counts, device=values.device).clamp(min=1)
        mean = values.new_zeros(len(counts), values.shape[1]).index_add(0, tokens.segment, values) / counts[:, None]
        return -torch.cosine_similarity(values, mean[tokens.segment], dim=1)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.at == "cache":
            return tokens.keep_mask(torch.isin(tokens.name, torch.cat(tokens.state["chosen"])))
        reduction = super().reduce(tokens, site)
        tokens.state.setdefault("chosen", []).append(tokens.name[reduction.keep])  # a prompt may come in chunks
        return reduction
