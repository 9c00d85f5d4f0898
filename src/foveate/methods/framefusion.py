"""FrameFusion: what looks like the frame before merges with it, in the first layers; then the budget is reached by pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from foveate.errors import ConfigError
from foveate.method import Host, Method, Paper, Site
from foveate.ops import frames, select
from foveate.ops.segments import segment_ids, segment_sum
from foveate.pruners import DecoderPruner
from foveate.schedule import COSINE, Schedule, check_within
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

FEW = 0.1  # of the tokens: where fewer are alike, merging is over


@dataclass(frozen=True)
class FrameFusion(DecoderPruner):
    """Merge tokens with those at their place in the frame before while many are alike, then keep what the last token looks at.

    From the paper and the authors' code: before the language model, and in each layer after that, a token joins the one
    before it at the same place of the video if their cosine is at least ``tau``, and a run of such tokens becomes its mean,
    where its first one was; once less than a tenth of the tokens are alike, the layer after that keeps those with most
    attention of the last token, mean over heads, so that a layer holds 30 % of the tokens on average (of 28 layers); if so
    many are alike that this is reached by merging, the most alike merge and no more. Ours: merging is between layers (the
    code: between a layer's attention and its FFN), it is over before ``layer`` in any case, where the code goes on, and
    pruning is before a layer, by the attention of the one before; every video of a batch has a budget of its own; counts
    are the nearest. An image is a video of one frame, so it is pruned before layer 1. There is no ``threshold``: likeness
    decides in which layers tokens leave, not how many a video holds on average. So each layer up to ``layer`` asks the
    device how many are alike.

    Attributes:
        layer: the last decoder layer before which tokens leave; by default at 1/7 of the depth.
        tau: cosine from which on a token merges.
        depth: decoder layers that the budget is a mean over; by default those of the model.
    """

    layer: int | None = None
    tau: float = 0.6
    depth: int | None = None

    signals: ClassVar[tuple[Signal | str, ...]] = ("last_row",)
    usual_keep: ClassVar[float | None] = 0.3
    pooled: ClassVar[bool] = True
    fixed_budget: ClassVar[bool] = False  # of a layer
    paper: ClassVar[Paper] = Paper(
        "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language Models",
        "ICCV",
        2025,
        "2501.01986",
        "thu-nics/FrameFusion",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(COSINE, tau=self.tau)
        if self.depth is not None and self.depth < 1:
            raise ConfigError(f"framefusion: depth={self.depth}: give the decoder layers of the model, or leave it out")

    @property
    def temporal(self) -> bool:
        return True

    def resolve(self, host: Host) -> Method:
        return self if self.depth else replace(self, depth=host.depth)

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((4,), (0.2,), 28, host.layers, first=1)

    def sites(self, host: Host) -> Sequence[Site]:
        *early, last = super().sites(host)
        if last.keep in (0.0, 1.0):
            return [*early, last]
        between = [Site.decoder(layer, signals=self.signals) for layer in range(1, last.layer)]
        return [Site.entry(), *between, last]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        x, n, first, last = tokens.hidden, tokens.pool_counts, site.at == "lm_entry", site.keep < 1
        # Of each video: its tokens, those held so far, and whether it merges (True), is to be pruned (False), is done (None).
        state: Any = tokens.state
        if first:
            state |= {"all": n, "held": [0] * len(n), "merges": [True] * len(n)}
        elif "held" not in state:  # nothing is to leave
            return Reduction(torch.arange(len(tokens), device=x.device), tokens.counts)
        before = frames.before_in_video(tokens.index, n, max(tokens.spans.sizes, default=1))
        alike = frames.cosine_with(x, before, missing=-2.0)
        near = segment_sum((alike >= self.tau).long(), segment_ids(n, x.device), len(n)).tolist()
        stages = list(zip(state["merges"], near, n, self._targets(tokens, 0 if first else site.layer)))
        prunes = [not first and merges is not None and (last or not merges) for merges, *_ in stages]
        goes = [min(a, m - t) if merges and not last else 0 for merges, a, m, t in stages]
        kept = [t if cut else m for (*_, m, t), cut in zip(stages, prunes)]
        over = [cut or merges is None or (merges and a >= m - t) for (merges, a, m, t), cut in zip(stages, prunes)]
        state["merges"] = [None if done else a >= FEW * m for done, (_, a, m, _) in zip(over, stages)]
        state["held"] = [held + k - gone for held, k, gone in zip(state["held"], kept, goes)]
        chosen = select.top_k(alike, n, goes)
        stays = torch.ones(len(tokens), dtype=torch.bool, device=x.device).index_fill(0, chosen, False)
        if any(prunes):
            best = select.top_k(tokens.last_row.float().mean(-1), n, kept)
            stays &= torch.zeros_like(stays).index_fill(0, best, True)
        left = tokens.keep_mask(stays)
        into = frames.first_of_runs(before, chosen, max(map(len, tokens.pools)))
        return tokens.merge_into(left.keep, left.counts, select.rank(left.keep, len(tokens))[into], "mean")

    def _targets(self, tokens: Tokens, layer: int) -> list[int]:
        """How many tokens of each video all layers from ``layer`` on may hold, to hold ``keep`` of them on average."""
        assert self.depth is not None, "resolve says it"
        share = self.keep if self.keep is not None else self.usual_keep or 1.0
        whole = zip(tokens.state["all"], tokens.state["held"], tokens.pool_counts)
        left = [(share * self.depth * n - held) / (self.depth - layer) for n, held, _ in whole]
        return [min(max(round(each), 1), n) for each, n in zip(left, tokens.pool_counts)]
