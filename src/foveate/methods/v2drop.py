"""V2Drop: tokens that the last layer hardly changed are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Method, Site
from foveate.schedule import Stage, check_ratio, of_present
from foveate.tokens import Tokens


@dataclass(frozen=True)
class V2Drop(Method):
    """Keep the tokens whose hidden state the previous decoder layer moved most (L2 norm), at a few layers.

    "Variation-aware Vision Token Dropping" (arXiv 2509.01552, CVPR 2026).
    From the authors' code: score ``|h_l - h_(l-1)|`` of the layers' inputs, original position ids, layers 3, 17, 22 of 32
    keeping 50 %, 50 % and (almost) none of what is there. Ours: ``layers`` unset scales those depths to the model; the
    last stage keeps none, where the code keeps one token.

    Attributes:
        layers: decoder layers before which tokens leave; empty: 3/32, 17/32 and 22/32 of the depth.
        keeps: share of the tokens present that survives at each of them.
    """

    layers: tuple[int, ...] = ()
    keeps: tuple[float, ...] = (0.5, 0.5, 0.0)

    paper: ClassVar[str] = "V2Drop (CVPR 2026, 2509.01552)"

    def __post_init__(self) -> None:
        super().__post_init__()
        for keep in self.keeps:
            check_ratio("keeps", keep)
        if self.layers and len(self.layers) != len(self.keeps):
            raise ConfigError(f"V2Drop needs one keep per layer: {len(self.layers)} layers, {len(self.keeps)} keeps")
        if not self.layers and len(self.keeps) != 3:
            raise ConfigError("V2Drop's default has three stages: give `layers` to use another number of `keeps`")

    def sites(self, host: Host) -> Sequence[Site]:
        layers = self.layers or [max(1, round(host.layers * depth / 32)) for depth in (3, 17, 22)]
        return [Site("decoder", layer, keep, signals=("residual",)) for layer, keep in zip(layers, self.keeps)]

    def with_share(self, share: float, host: Host) -> Method:
        """Every stage that keeps something keeps ``share`` of what is there."""
        return replace(self, keeps=tuple(share if keep else 0.0 for keep in self.keeps))

    def with_stages(self, stages: Sequence[Stage], host: Host) -> Method:
        layers, keeps = zip(*of_present(stages))
        return replace(self, layers=layers, keeps=keeps)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        variation: Tensor = torch.linalg.vector_norm(tokens.residual.float(), dim=-1)
        return variation
