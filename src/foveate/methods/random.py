"""Random: the control that every published method has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Host, Method, Site
from foveate.tokens import Tokens


@dataclass(frozen=True)
class Random(Method):
    """Keep a random share of every span before decoder layer ``layer``.

    A control, not a paper; UniPruneBench (arXiv 2511.02650) finds it stronger than many methods. The draw depends on
    ``seed``, the layer and the token's place in its span, so an image loses the same tokens in any batch.

    Attributes:
        keep: share of each image that survives.
        layer: decoder layer before which the others leave.
        seed: of the draw.
    """

    keep: float = 0.5
    layer: int = 0
    seed: int = 0

    control: ClassVar[bool] = True

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", self.layer, self.keep)]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 65_537 + site.layer) % 2**63)
        draw = torch.rand(max(tokens.spans.sizes, default=0), generator=generator)
        return draw.to(tokens.index.device, non_blocking=True)[tokens.index]
