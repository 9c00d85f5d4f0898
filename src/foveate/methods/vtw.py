"""VTW: withdraw every visual token at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from foveate.method import Host, Method, Paper, Site
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class VTW(Method):
    """Remove all visual tokens before decoder layer ``layer``.

    From the authors' code: original position ids are kept, and decoding counts on from the full length. The authors
    search the layer by the KL divergence of the answer on a few samples (15 of 32 for LLaVA-1.5-7B). Ours: ``layer=None``
    means that share of the depth, for models nobody has searched.

    Attributes:
        layer: decoder layer before which all visual tokens leave (K); None: 15/32 of the depth.
    """

    layer: int | None = None

    paper: ClassVar[Paper] = Paper(
        "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
        "AAAI",
        2025,
        "2405.05803",
        "lzhxmu/VTW",
    )

    def sites(self, host: Host) -> Sequence[Site]:
        layer = round(host.layers * 15 / 32) if self.layer is None else self.layer
        return [Site("decoder", layer, keep=0.0)]

    def with_share(self, share: float, host: Host) -> Method:
        return replace(self, layer=min(round(share * host.layers), host.layers - 1))

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        nothing = torch.empty(0, dtype=torch.long, device=tokens.index.device)
        return Reduction(nothing, (0,) * len(tokens.counts))
