"""V2Drop: tokens that the last layer hardly changed are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Host, Paper, Site
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, Spelling
from foveate.signal import Signal
from foveate.tokens import Tokens

#: The authors' settings: decoder layers of their model, those before which tokens leave, share of those present that stays.
LLAVA = 32, (3, 17, 22), (0.5, 0.5, 0.0)
QWEN2_VL = 28, (3, 16, 22), (0.25, 0.05, 0.0)


@dataclass(frozen=True)
class V2Drop(DecoderPruner):
    """Keep the tokens whose hidden state the previous decoder layer moved most (L2 norm), at a few layers.

    From the authors' code: score ``|h_l - h_(l-1)|`` of the layers' inputs, original position ids; for LLaVA, layers 3, 17
    and 22 of 32 that keep 50 %, 50 % and one token of what is there; for Qwen2-VL, layers 3, 16 and 22 of 28 that keep 25 %,
    5 % and one token. Ours: these depths are scaled to the model, Qwen2-VL's for all Qwen models and LLaVA's for all others;
    the last stage keeps none; counts are the nearest over all stages (the code rounds each one down), and every frame of a
    video keeps its part (the code ranks the whole video).

    Attributes:
        layers: decoder layers before which tokens leave; by default see above.
        ratios: share of the tokens present that survives at each of them; by default see above.
        schedule: in place of both.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    schedule: Spelling | None = None

    signals: ClassVar[tuple[Signal | str, ...]] = ("residual",)
    paper: ClassVar[Paper] = Paper(
        "Variation-aware Vision Token Dropping for Faster Large Vision-Language Models",
        "CVPR",
        2026,
        "2509.01552",
        "xuyang-liu16/V2Drop",
    )

    def usual(self, host: Host) -> Schedule:
        depth, layers, ratios = QWEN2_VL if host.family.startswith("qwen") else LLAVA
        return Schedule.scaled(layers, ratios, depth, host.layers, first=1)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        variation: Tensor = torch.linalg.vector_norm(tokens.residual.float(), dim=-1)
        return variation
