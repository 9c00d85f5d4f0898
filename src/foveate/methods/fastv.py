"""FastV: the last token's attention in an early layer ranks the visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.method import Host, Paper, Site
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, Spelling
from foveate.signal import Signal
from foveate.tokens import Tokens


@dataclass(frozen=True)
class FastV(DecoderPruner):
    """Before decoder layer ``layer``, keep the visual tokens that the last text token attends to most.

    From the paper (section 4.1): the layer and the ratio (K=2, R=50 %). From the authors' code: attention of the layer before,
    mean over heads, query = the last token; original position ids are kept. Ours: one attention row is computed, not a
    map, so fast attention kernels stay on; every image keeps its share, rounded to the nearest count (the code rounds down),
    and every frame of a video its part of it (the code ranks the whole video).

    Attributes:
        layer: decoder layer before which the others leave (K); by default 2.
        ratio: share of each image that survives there; by default 0.5.
        schedule: in place of both. Tokens are ranked anew by each previous layer, as G-Search and P-Sigmoid do (arXiv
            2412.00556, CVPR 2025); `foveate tune` searches one.
    """

    layer: int | None = None
    ratio: float | None = None
    schedule: Spelling | None = None

    signals: ClassVar[tuple[Signal | str, ...]] = ("last_row",)
    paper: ClassVar[Paper] = Paper(
        "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models",
        "ECCV",
        2024,
        "2403.06764",
        "pkunlp-icler/FastV",
    )

    def usual(self, host: Host) -> Schedule:
        return Schedule(((2, 0.5),))

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.last_row.mean(-1)
