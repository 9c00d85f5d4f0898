"""Random: the control that every published method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Host, Site
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, Spelling
from foveate.tokens import Tokens


@dataclass(frozen=True)
class Random(DecoderPruner):
    """Keep a random share of every span before a decoder layer.

    A control, not a paper; UniPruneBench (arXiv 2511.02650) finds it stronger than many methods. The draw depends on
    ``seed``, the layer and the token's place in its span, so an image loses the same tokens in any batch.

    Attributes:
        layer: decoder layer before which the others leave; by default 0.
        ratio: share of each image that survives there; by default 0.5.
        schedule: in place of both.
        seed: of the draw.
    """

    layer: int | None = None
    ratio: float | None = None
    schedule: Spelling | None = None
    seed: int = 0

    control: ClassVar[bool] = True

    def usual(self, host: Host) -> Schedule:
        return Schedule(((0, 0.5),))

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 65_537 + site.layer) % 2**63)
        draw = torch.rand(max(tokens.spans.sizes, default=0), generator=generator)
        return draw.to(tokens.index.device, non_blocking=True)[tokens.index]
