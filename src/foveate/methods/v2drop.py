"""V2Drop: tokens that the last layer hardly changed are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Method, Paper, Site
from foveate.schedule import Stage, check_ratio, of_present, of_whole
from foveate.tokens import Tokens

#: The authors' settings: decoder layers of their model, those before which tokens leave, share of those present that stays.
LLAVA = 32, (3, 17, 22), (0.5, 0.5, 0.0)
QWEN2_VL = 28, (3, 16, 22), (0.25, 0.05, 0.0)


@dataclass(frozen=True)
class V2Drop(Method):
    """Keep the tokens whose hidden state the previous decoder layer moved most (L2 norm), at a few layers.

    From the authors' code: score ``|h_l - h_(l-1)|`` of the layers' inputs, original position ids; for LLaVA, layers 3, 17
    and 22 of 32 that keep 50 %, 50 % and one token of what is there; for Qwen2-VL, layers 3, 16 and 22 of 28 that keep 25 %,
    5 % and one token. Ours: these depths are scaled to the model, Qwen2-VL's for all Qwen models and LLaVA's for all others;
    the last stage keeps none; counts are the nearest over all stages (the code rounds each one down), and every frame of a
    video keeps its part (the code ranks the whole video).

    Attributes:
        layers: decoder layers before which tokens leave; empty: see above.
        keeps: share of the tokens present that survives at each of them; empty: see above.
    """

    layers: tuple[int, ...] = ()
    keeps: tuple[float, ...] = ()

    paper: ClassVar[Paper] = Paper(
        "Variation-aware Vision Token Dropping for Faster Large Vision-Language Models",
        "CVPR",
        2026,
        "2509.01552",
        "xuyang-liu16/V2Drop",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for keep in self.keeps:
            check_ratio("keeps", keep)
        if self.layers and len(self.layers) != (len(self.keeps) or 3):
            raise ConfigError(
                f"V2Drop needs one keep per layer: {len(self.layers)} layers, {len(self.keeps) or 3} keeps"
            )
        if not self.layers and len(self.keeps) not in (0, 3):
            raise ConfigError("V2Drop's default has three stages: give `layers` to use another number of `keeps`")

    def sites(self, host: Host) -> Sequence[Site]:
        return Site.cascade("decoder", of_whole(self._stages(host)), signals=("residual",))

    def _stages(self, host: Host) -> list[Stage]:
        """Layers, and the share of the tokens present that survives at each."""
        depth, layers, keeps = QWEN2_VL if host.family.startswith("qwen") else LLAVA
        scaled = [max(1, round(host.layers * layer / depth)) for layer in layers]
        return list(zip(self.layers or scaled, self.keeps or keeps))

    def with_share(self, share: float, host: Host) -> Method:
        """Every stage that keeps something keeps ``share`` of what is there."""
        return replace(self, keeps=tuple(share if keep else 0.0 for _, keep in self._stages(host)))

    def with_stages(self, stages: Sequence[Stage], host: Host) -> Method:
        layers, keeps = zip(*of_present(stages))
        return replace(self, layers=layers, keeps=keeps)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        variation: Tensor = torch.linalg.vector_norm(tokens.residual.float(), dim=-1)
        return variation
