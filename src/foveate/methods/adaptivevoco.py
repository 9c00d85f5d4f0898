"""Adaptive-VoCo (reconstruction): as many VoCo tokens for an image as its complexity asks for, which training finds out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.answers import Answer as SaidAnswer
from foveate.answers import Append
from foveate.errors import ConfigError
from foveate.learning import Relaxation, Stage
from foveate.losses import Answer, Rate
from foveate.method import Host, Paper, Site
from foveate.methods.vocollama import VoCoLLaMA
from foveate.ops.segments import segment_ids, segment_mean, segment_softmax, segment_sum, within
from foveate.tokens import Tokens

HIDDEN = 16
SHARPNESS = 4.0  # of the sigmoid, in training


@dataclass(frozen=True, kw_only=True)
class AdaptiveVoCo(VoCoLLaMA):
    """VoCo-LLaMA with more tokens for complex images and fewer for plain ones: `keep` is the mean (a reconstruction).

    From the abstract: a light predictor chooses the rate of an image by its complexity, of which the entropy of its patch
    tokens and the variance of attention tell; trained end to end with the answer's loss and one for the rate. Ours, as neither
    the text nor code could be read: a perceptron reads the mean and the deviation of the entropy that the channels of a
    projected token have as a distribution, and the entropy and the variance of the attention that the mean of an image would
    pay to its tokens; what it says moves the number of tokens up or down by a factor of 4 at most; token number k is appended
    if that reaches k + 1/2, and in training all come, with the logarithm of a sigmoid of what is missing added to the attention
    logits of their keys; the rate's loss is the squared distance of the mean of a batch from `keep`. Left out: the term that
    aligns rate and complexity, of which nothing more is said. All else is VoCo-LLaMA, at whose fixed number training begins.

    Attributes:
        most: an image has at most so many times the tokens that `ratio` says, and at least as small a part of them, or one.
    """

    most: int = 4

    fixed_budget: ClassVar[bool] = False
    relaxation: ClassVar[Relaxation] = Relaxation("sigmoid", "keys")
    stages: ClassVar[tuple[Stage, ...]] = (Stage((Answer(), Rate(of="batch")), lr=2e-4, trains=("parts", "lora")),)
    paper: ClassVar[Paper] = Paper(
        "Adaptive-VoCo: Complexity-Aware Visual Token Compression for Vision-Language Models",
        "ICASSP",
        2026,
        "2512.18496",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most < 1:
            raise ConfigError(f"{self.name()}: most={self.most}: give a whole number from 1 on")

    def modules(self, host: Host) -> nn.ModuleDict:
        parts, rate = super().modules(host), nn.Linear(HIDDEN, 1)
        nn.init.normal_(rate.weight, std=1e-3)
        nn.init.zeros_(rate.bias)
        parts["read"], parts["rate"] = nn.Linear(4, HIDDEN), rate
        return parts

    def answer(self, tokens: Tokens, site: Site) -> SaidAnswer:
        if site.action != "append":
            return super().answer(tokens, site)
        usual, device = tokens.budget(site), tokens.hidden.device
        read = self.learned["read"](self.complexity(tokens).to(tokens.hidden.dtype))
        moves = self.learned["rate"](torch.nn.functional.gelu(read))[:, 0].float().tanh()
        wanted = (torch.tensor(usual).to(moves, non_blocking=True) * self.most**moves).clamp(min=0.5)
        counts = tuple(n * self.most for n in usual)
        score = wanted[segment_ids(counts, device)] - within(counts, device) - 0.5
        return Append(self.rows(tokens, counts), counts, score=SHARPNESS * score)

    @staticmethod
    def complexity(tokens: Tokens) -> Tensor:
        """``(S, 4)``: mean and deviation of the entropy of an image's tokens, entropy and variance of attention to them."""
        x, segment, n = tokens.hidden.float(), tokens.segment, len(tokens.counts)
        share = torch.nn.functional.layer_norm(x, x.shape[1:]).softmax(-1)
        entropy = -torch.special.xlogy(share, share).sum(-1)
        mean = segment_mean(entropy, segment, n)
        deviation = segment_mean((entropy - mean[segment]).square(), segment, n).sqrt()
        logits = (x * segment_mean(x, segment, n)[segment]).sum(-1) / x.shape[-1] ** 0.5
        paid = segment_softmax(logits, segment, n)
        spread = -segment_sum(torch.special.xlogy(paid, paid), segment, n)
        size = torch.tensor(tokens.counts).clamp(min=1).to(x, non_blocking=True)
        variance = segment_mean((paid * size[segment] - 1).square(), segment, n)
        return torch.stack([mean - math.log(x.shape[1]), deviation, spread - size.log(), variance.log1p()], dim=1)

    def flops(self, tokens: Tokens, site: Site) -> int:
        return 2 * 5 * HIDDEN * len(tokens.counts) if site.action == "append" else 0
