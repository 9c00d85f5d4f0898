"""EvoPrune: tokens merge in every second vision block, by likeness, diversity and attention (details: a reconstruction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import merge, pairs, select
from foveate.ops.pairs import Pairs
from foveate.ops.segments import segment_ids
from foveate.pruners import TowerReducer, merging
from foveate.schedule import check_within
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

FORBIDDEN = 4.0  # more than any two weighted similarities differ by


@dataclass(frozen=True)
class EvoPrune(TowerReducer):
    """Merge pairs that are alike, not isolated and not looked at, in every second vision block (details: a reconstruction).

    From the paper: between attention and FFN; even and odd tokens, each even one with its best odd partner; a pair counts with
    ``cosine * exp(-diversity * (d_i + d_j))``, where ``d`` is 1 minus the mean of ``exp(-distance^2 / bandwidth^2)`` to its
    nearest neighbours; the quarter of the tokens that receive most attention is protected (at most as many as leave pairs for
    all merges); the same number of merges in every second block; 64 of 576 tokens left.
    Ours, as they are not said: 5 neighbours, ``bandwidth`` and ``diversity`` 1, distances between vectors of unit length,
    means by size or plain ones (``means``); attention is what a token receives (what the paper's index says is constant);
    which blocks are second ones: the last one is. Protected tokens merge after all others, where these leave too few pairs;
    tokens alternate in raster order, the CLS token is in neither set, and in towers with a 2x2 merger a token is the 2x2
    block, merged patch by patch.

    Attributes:
        schedule: blocks in which tokens merge: ``skip``, every second one; or ``mean``, all.
        protect: share of the tokens present that is protected.
        neighbours: how many nearest tokens say how isolated one is.
        bandwidth: distance at which a neighbour is far, above 0.
        diversity: how much isolation counts against a merge; 0: not at all.
        means: weighted by ``sizes``, the default, or ``plain``.
    """

    schedule: Literal["skip", "mean"] = "skip"
    protect: float = 0.25
    neighbours: int = 5
    bandwidth: float = 1.0
    diversity: float = 1.0
    means: Literal["sizes", "plain"] = "sizes"

    usual: ClassVar[float] = 64 / 576
    signals: ClassVar[tuple[Signal | str, ...]] = ("received",)
    paper: ClassVar[Paper] = Paper(
        "EvoPrune: Early-Stage Visual Token Pruning for Efficient MLLMs", "arXiv", 2026, "2603.03681"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the tokens", protect=self.protect)
        if self.neighbours < 1 or self.bandwidth <= 0 or self.diversity < 0:
            raise ConfigError(
                f"{self.name()}: give at least 1 neighbour, a bandwidth above 0 and a diversity of 0 or more, not "
                f"neighbours={self.neighbours}, bandwidth={self.bandwidth} and diversity={self.diversity}"
            )

    def least(self, host: Host) -> float:
        return 0.5 ** len(self._merging(host))

    def blocks(self, host: Host) -> Sequence[Site]:
        stages = merging(self._merging(host), self.share)
        return Site.cascade("tower", stages, where="mid", signals=self.signals)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts, merges = tokens.counts, self._merges(tokens, site)
        alike = pairs.cosines(tokens.hidden, counts)
        weight = torch.exp(-self.diversity * self._isolation(alike, counts))
        spared = [min(int(self.protect * n), n - 2 * merged) for n, merged in zip(counts, merges)]
        kept = select.top_k(tokens.received, counts, spared)
        protected = torch.zeros_like(weight).index_fill(0, kept, FORBIDDEN)
        weight, protected = (torch.nn.functional.pad(each, (0, 1)) for each in (weight, protected))

        def score(cosine: Tensor, row: Tensor, column: Tensor) -> Tensor:
            weighed = cosine * weight[row][:, :, None] * weight[column][:, None]
            return weighed - torch.maximum(protected[row][:, :, None], protected[column][:, None])

        rule: merge.Rule = "sizes" if self.means == "sizes" else "mean"
        return tokens.merge_pairs(*merge.strongest(alike, score, counts, merges), merges, rule)

    def _isolation(self, alike: Pairs, counts: Sequence[int]) -> Tensor:
        """``(N,)``: how far each token is from its nearest neighbours, from 0 to 1; of a token without any it is 1."""

        def nearness(cosine: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor]:
            nearest = pairs.largest(cosine, self.neighbours)
            return (torch.exp(-(2 - 2 * nearest) / self.bandwidth**2).sum(-1),)

        (near,) = alike.ask(nearness)
        found = torch.tensor([min(max(n - 1, 1), self.neighbours) for n in counts]).to(near.device, non_blocking=True)
        isolation: Tensor = 1 - near / found[segment_ids(counts, near.device)]
        return isolation

    def _merges(self, tokens: Tokens, site: Site) -> list[int]:
        """How many tokens of each span merge into others: at most half of them."""
        return [min(n - kept, n // 2) for kept, n in zip(tokens.budget(site), tokens.counts)]

    def _merging(self, host: Host) -> Sequence[int]:
        return range(host.blocks) if self.schedule == "mean" else range((host.blocks - 1) % 2, host.blocks, 2)

    def flops(self, tokens: Tokens, site: Site) -> int:
        return pairs.products(tokens.counts, tokens.hidden.shape[-1], questions=2)
