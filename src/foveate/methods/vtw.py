"""VTW: withdraw every visual token at one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Host, Paper, Site
from foveate.pruners import DecoderPruner, from_the_start
from foveate.schedule import Schedule
from foveate.tokens import Tokens


@dataclass(frozen=True)
class VTW(DecoderPruner):
    """Remove all visual tokens before decoder layer ``layer``.

    From the authors' code: original position ids are kept, and decoding counts on from the full length. The layer is the
    first one, from layer 5 on (counted from 0), without whose visual tokens the first token of the answer stays near the
    stock model's: KL(compressed || stock), a mean over some 20 samples, is at most eta (0.0005 for LLaVA-1.5-13B, 0.0001
    for LLaVA-NeXT-7B, 0.003 for all others; LLaVA-1.5-7B has 15 of 32). ``foveate tune --method vtw --search withdrawal``
    finds it by that rule. Ours: by default that share of the depth, for models nobody has searched; without ``--search``,
    ``foveate tune --method vtw --max-kl`` begins at layer 0 and takes KL(stock || compressed), a mean over the whole answer,
    so those etas are none for it. The layer is all there is to turn, so ``keep`` is met to the nearest one, within half a
    layer.

    Attributes:
        layer: decoder layer before which all visual tokens leave (K); by default at 15/32 of the depth.
    """

    layer: int | None = None

    how_much: ClassVar[tuple[str, ...]] = ("layer",)
    paper: ClassVar[Paper] = Paper(
        "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
        "AAAI",
        2025,
        "2405.05803",
        "lzhxmu/VTW",
    )

    def usual(self, host: Host) -> Schedule:
        return Schedule(((round(host.layers * 15 / 32), 0.0),))

    def plan(self, host: Host) -> Schedule:
        layer = self.usual(host).layers[0] if self.layer is None else from_the_start(self.layer, host)
        if self.keep is not None:
            layer = math.floor(self.keep * host.depth + 0.5)
        return Schedule(((layer, 0.0),) if self.keep is None or layer < host.depth else ())

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return torch.zeros_like(tokens.sizes)  # all go together

    def least(self, host: Host) -> float:
        return 0.0
