"""FlowCut: in every second vision block leave tokens that little information flows from, the more of them the clearer it is."""

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
from foveate.ops.frames import cells_of
from foveate.ops.segments import normalise, segment_softmax, segment_sum
from foveate.pruners import TowerReducer
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class FlowCut(TowerReducer):
    """Prune in every second vision block by attention and values of the CLS token, as many as its attention is far from even.

    From the paper: what flows from a token is judged by several facts and over blocks, not by one row of attention. From
    the authors' code: a block's score is the CLS token's attention plus the softmax of the products of its values with
    those of a token, both of a sum of 1 and the mean over heads, times the L1 norm of the token's mean value; half of it
    and half of the score so far is the score; after every second block, up to the one before the last used one, ``(n - k) /
    sqrt(rest) * (1 - (H / log n)^2)`` of ``n`` tokens leave, where ``k`` is the budget, ``rest`` the blocks to come before
    the last such cut, and ``H`` the entropy of the CLS token's attention; at that cut all that is over; 64 of 576. Ours:
    each image has counts of its own (the code: the largest of the batch); without a CLS token, attention received, without
    the products of values, as the code has it for Qwen2-VL, and all of the budget is reached in the tower (there: four
    times as much, the rest at layer 1 of the decoder); with a 2x2 merger a token is the 2x2 block, and its values those of
    its patches. How many leave depends on entropies, so each of these blocks but the last asks the device.

    Attributes:
        depth: vision blocks that are counted; by default those whose output is used.
    """

    depth: int | None = None

    usual: ClassVar[float] = 64 / 576
    fixed_budget: ClassVar[bool] = False  # of a block
    paper: ClassVar[Paper] = Paper(
        "FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models",
        "NeurIPS",
        2025,
        "2505.19536",
        "TungChintao/FlowCut",
    )

    def resolve(self, host: Host) -> Method:
        return self if self.depth else replace(self, depth=host.blocks)

    def blocks(self, host: Host) -> Sequence[Site]:
        last, found = (self.depth or host.blocks) - 1, list[Site]()
        if not 0 < last < host.blocks:
            raise ConfigError(
                f"flowcut: tokens leave between vision blocks, and depth={self.depth} is not of this tower, which has "
                f"{host.blocks}"
            )
        for block in range(last, 0, -2):
            before = [each for each in (block - 2, block - 1) if each >= 0]
            read = [Signal("cls_row" if host.has_cls else "received", each) for each in before]
            read += [Signal("values", each) for each in before]
            read += [Signal("values", each, of="cls") for each in before if host.has_cls]
            share = self.share if block == last else 1.0  # how many leave before it the image says
            found.append(Site.tower(block, share, signals=tuple(read)))
        return found[::-1]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts, state, first = tokens.counts, tokens.state, site.layer <= 2  # what another call has left there is over
        cell = cells_of(tokens.index, counts, tokens.spans.sizes)
        score: Tensor | None = None if first else state["score"][cell]
        for each in site.asked:
            if each.kind in ("cls_row", "received"):
                new = self._score(tokens, each)
                score = new if score is None else (score + new) / 2
        assert score is not None, "there is a block before each site"
        if first:
            state["target"] = tokens.budget(self.share)
        kept = self._kept(tokens, site, [min(k, n) for k, n in zip(state["target"], counts)])
        state["score"] = score.new_zeros(sum(tokens.spans.sizes)).index_copy(0, cell, score.detach())
        return Reduction(select.top_k(score, counts, kept), tuple(kept))

    def _kept(self, tokens: Tokens, site: Site, target: list[int]) -> list[int]:
        """How many tokens of each image are left; asks the device, but at the last site."""
        assert self.depth is not None, "resolve says it"
        rest = self.depth - 1 - site.layer
        if not rest:
            return target
        paid = self._attention(tokens, [each for each in site.asked if each.kind in ("cls_row", "received")][-1])
        entropy = -segment_sum(torch.special.xlogy(paid, paid), tokens.segment, len(tokens.counts))
        clear = [1 - (h / math.log(n)) ** 2 if n > 1 else 0.0 for h, n in zip(entropy.tolist(), tokens.counts)]
        return [max(n - round((n - k) / rest**0.5 * c), k) for n, k, c in zip(tokens.counts, target, clear)]

    def _attention(self, tokens: Tokens, signal: Signal) -> Tensor:
        paid = tokens.signal(signal).float()
        return normalise(paid.mean(-1) if paid.dim() == 2 else paid, tokens.counts, "sum")

    def _score(self, tokens: Tokens, signal: Signal) -> Tensor:
        """How much information flows from each token in one block, ``(N,)``."""
        values, score, n = (
            tokens.signal("values", signal.layer).float(),
            self._attention(tokens, signal),
            len(tokens.counts),
        )
        if signal.kind == "cls_row":
            own, segment = tokens.signal("values", signal.layer, "cls").float(), tokens.segment
            alike = (values.unflatten(-1, (-1, own.shape[-1])) * own[segment][:, :, None]).sum(-1).mean(-1)
            both = (
                torch.cat([alike, own.square().sum(-1)]),
                torch.cat([segment, torch.arange(n, device=segment.device)]),
            )
            there = segment_softmax(*both, n)[: len(segment)].mean(1)
            score = score + normalise(there, tokens.counts, "sum")
        return score * values.mean(1).abs().sum(-1)
