"""AutoPrune: tokens leave layer by layer along a curve, the steeper the less the question points at parts of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Method, Paper, Site
from foveate.ops import select
from foveate.ops.segments import segment_ids, segment_sum
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, Spelling, survivors, times_factor
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

HEADS = Signal("text_rows", heads=True)
TOP, CENTRE, DEPTH = 0.75, 14.9, 32  # of the logistic curve, in layers of a model with 32


@dataclass(frozen=True)
class AutoPrune(DecoderPruner):
    """Before nearly every layer keep what the question looks at, as many as a curve says, which is steeper for a hard prompt.

    From the paper: the mutual information of the question's words and the image's tokens, in the attention of an early layer,
    says how hard a prompt is; a hard one, with little of it, has a steeper curve; whatever the curve, layers hold the budget
    on average. From the authors' code: after layer 1 of 32, summed over heads, in bits; with it, a curve falls with
    ``max(steepness - gamma * information, 0)`` per layer around layer 14.9 plus that; tokens leave after each layer from there
    on, ranked by the mean attention of all words behind the image, and heads; one factor brings the curve to the budget; 192
    of 576. Ours: tokens leave before layers where the curve of a prompt without information has fallen by 2 % (the code: every
    one); nothing is recycled into clusters, and there is no cut by the CLS token's attention after layer 0 (the code: to 2.5
    times the budget, in LLaVA); each image or video has its own curve. No ``threshold``: it spreads a budget, and sets none.

    Attributes:
        schedule: where tokens leave, and how many where there is no information, in place of the curve.
        steepness: of the curve where there is no information, per layer of 32; by default 0.4.
        gamma: what a bit of information takes of it; by default 0.2.
        depth: decoder layers that the budget is a mean over; by default those of the model.
    """

    schedule: Spelling | None = None
    steepness: float = 0.4
    gamma: float = 0.2
    depth: int | None = None

    signals: ClassVar[tuple[Signal | str, ...]] = ("text_rows", HEADS, "text_place")
    usual_keep: ClassVar[float | None] = 192 / 576
    pooled: ClassVar[bool] = True
    fixed_budget: ClassVar[bool] = False  # of a layer
    paper: ClassVar[Paper] = Paper(
        "AutoPrune: Each Complexity Deserves a Pruning Policy",
        "NeurIPS",
        2025,
        "2509.23931",
        "AutoLab-SAI-SJTU/AutoPrune",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steepness", "gamma"):
            if not 0 <= getattr(self, name) <= 1000:
                raise ConfigError(f"autoprune: {name}={getattr(self, name)}: give 0 (a flat curve) to 1000 (a cliff)")
        if self.depth is not None and self.depth < 1:
            raise ConfigError(f"autoprune: depth={self.depth}: give the model's decoder layers, or leave it out")

    def resolve(self, host: Host) -> Method:
        known = self.depth and isinstance(self.schedule, tuple)
        if known:
            return self
        stages = self.plan(host).stages
        return replace(self, depth=host.depth, schedule=tuple(s for s in stages if s[1] < 1 - 1e-6) or stages[-1:])

    def usual(self, host: Host) -> Schedule:
        first = min(2, host.layers - 1)
        curve = [self._curve(layer, self.steepness, host.layers) for layer in range(host.layers)]
        return Schedule.along([1.0] * first + curve[first:], first)

    def sites(self, host: Host) -> Sequence[Site]:
        first, *others = super().sites(host)
        return [first, *(replace(site, signals=site.signals and ("text_rows", "text_place")) for site in others)]

    def _curve(self, layer: int, steepness: float, layers: int) -> float:
        """What is left from ``layer`` on, as the curve says."""
        fall = steepness * ((layer - 1) * DEPTH / layers - CENTRE - steepness)
        return TOP / (1 + math.exp(min(max(fall, -700.0), 700.0)))

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.text_rows.float().sum(1) / (tokens.text_place >= 0).sum(1).clamp(min=1)[tokens.sample]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.keep == 1:
            return tokens.keep_mask(torch.ones_like(tokens.index, dtype=torch.bool))
        if len(site.shares) == 1:
            tokens.state["left"] = self._left(tokens)
        left = tokens.state["left"][len(site.shares) - 1]
        kept = tuple(min(few, n) for few, n in zip(left, tokens.pool_counts))
        return tokens.keep_pooled(select.top_k(self.score(tokens, site), tokens.pool_counts, kept), kept)

    def _left(self, tokens: Tokens) -> list[list[int]]:
        """How many tokens of each image or video are left at each site; asks the device."""
        assert self.depth, "resolve says it"
        assert isinstance(self.schedule, tuple), "and this"
        plan = Schedule(self.schedule)
        steep = [max(self.steepness - self.gamma * bits, 0.0) for bits in self.information(tokens).tolist()]
        shares = [times_factor([self._curve(i, k, self.depth) for i in plan.layers], plan, self.depth) for k in steep]
        return [[survivors(n, each[i]) for n, each in zip(tokens.pool_counts, shares)] for i in range(len(plan.layers))]

    def information(self, tokens: Tokens) -> Tensor:
        """Mutual information of the words of the question and the tokens of each image or video, in bits, ``(videos,)``."""
        paid, pools = tokens.signal(HEADS).double(), tokens.pool_counts  # (N, H, R)
        words = (tokens.text_place >= 0).sum(1).clamp(min=1)[tokens.sample][:, None, None]
        joint = paid / words
        ratio = joint / (joint.sum(-1, keepdim=True) / words + 1e-6)
        bits = (joint * ratio.clamp(min=1e-6).log2()).sum((1, 2))
        return segment_sum(bits, segment_ids(pools, bits.device), len(pools))
