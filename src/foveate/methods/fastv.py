"""FastV: the last token's attention in an early layer ranks the visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from foveate.method import Host, Method, Paper, Site
from foveate.schedule import Stage, check_stages, turned
from foveate.tokens import Tokens


@dataclass(frozen=True)
class FastV(Method):
    """Before decoder layer ``layer``, keep the visual tokens that the last text token attends to most.

    From the paper (section 4.1): the layer and the ratio (K=2, R=50 %). From the authors' code: attention of the layer before,
    mean over heads, query = the last token; original position ids are kept. Ours: one attention row is computed, not a
    map, so fast attention kernels stay on; every image keeps its share, rounded to the nearest count (the code rounds down),
    and every frame of a video its part of it (the code ranks the whole video).

    Attributes:
        keep: share of each image that survives.
        layer: decoder layer before which the others leave (K).
        stages: in place of both, a schedule: (layer, share of all tokens from there on). Tokens are ranked anew by each
            previous layer, as G-Search and P-Sigmoid do (arXiv 2412.00556, CVPR 2025); `foveate tune` searches one.
    """

    keep: float = 0.5
    layer: int = 2
    stages: tuple[tuple[int, float], ...] = ()

    paper: ClassVar[Paper] = Paper(
        "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models",
        "ECCV",
        2024,
        "2403.06764",
        "pkunlp-icler/FastV",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages("stages", self.stages)

    def sites(self, host: Host) -> Sequence[Site]:
        return Site.cascade("decoder", self.stages or [(self.layer, self.keep)], signals=("last_row",))

    def with_share(self, share: float, host: Host) -> Method:
        """Its one ratio, or the schedule steeper or flatter."""
        return replace(self, stages=tuple(turned(self.stages, share))) if self.stages else replace(self, keep=share)

    def with_stages(self, stages: Sequence[Stage], host: Host) -> Method:
        return replace(self, stages=tuple(stages))

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.last_row.mean(-1)
