"""ApET: tokens that a few others cannot make up stay, and the rest is averaged into them. No attention is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import pad

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import bases, merge, select
from foveate.ops.segments import offsets, ranges
from foveate.pruners import StagedPruner
from foveate.schedule import Schedule
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class ApET(StagedPruner):
    """Keep a basis of each image and the tokens that it approximates worst; average the others into those most like them.

    From the paper: the error of the best linear approximation by a few basis tokens says how much a token has of its own, which
    entropy bounds; it reads no attention, so it has none of its bias of position. From the authors' code: 10 basis tokens by
    farthest-point sampling, least squares with a ridge of 1e-5; the survivors are these and the worst of the others; each token
    that leaves joins the one of those others with the largest cosine, which becomes the mean of all that have joined it; 96 of
    576 tokens after the tower, a third of these from layer 16 of 32 on (14 of 28 in Qwen2.5-VL), so 1/9 on average. Ours: the
    first basis token is the one farthest from the mean (the code: one at random); basis tokens stay where they are (the code
    puts them at the places of the best approximated survivors); before the projector; every image by itself; a budget that is
    no more than the basis is the basis, into which the others merge.

    Attributes:
        layers: where tokens leave: 0 is the tower's output, others are decoder layers; by default 0 and half of the depth.
        ratios: share of the tokens present that survives at each of them; by default 1/6 and 1/3.
        basis: tokens of an image that the others are approximated by.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    basis: int = 10

    paper: ClassVar[Paper] = Paper(
        "ApET: Approximation-Error Guided Token Compression for Efficient VLMs",
        "CVPR",
        2026,
        "2602.19870",
        "MaQianKun0/ApET",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.basis < 1:
            raise ConfigError(f"apet: basis={self.basis}: give the tokens that approximate the others, at least 1")

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((0, 16), (1 / 6, 1 / 3), 32, host.layers)

    def tower_signals(self, host: Host) -> tuple[Signal | str, ...]:
        return ()

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept, counts = tokens.budget(site), tokens.counts
        if kept == counts:
            return Reduction(torch.arange(len(tokens), device=tokens.index.device), kept)
        n_basis = [min(self.basis, k) for k in kept]
        n_others = [k - few for k, few in zip(kept, n_basis)]
        basis = bases.farthest(tokens.hidden, counts, n_basis)
        error = bases.approximation_error(tokens.hidden, counts, basis, n_basis)
        others = select.top_k(error.index_fill(0, basis, -1.0), counts, n_others)
        keep = torch.cat([basis, others]).sort().values
        alone = [0 if n else few for n, few in zip(n_others, n_basis)]  # a basis that is all there is takes the others
        target = torch.cat([others, basis[ranges(offsets(n_basis)[:-1], alone, basis.device)]]).sort().values
        nearest = merge.nearest_target(tokens.hidden, counts, target, [n + few for n, few in zip(n_others, alone)])
        place = select.rank(keep, len(tokens))
        group = pad(place[target], (0, 1), value=len(keep))[nearest]
        group = group.index_copy(0, keep, torch.arange(len(keep), device=keep.device))
        return tokens.merge_into(keep, kept, group, "mean")

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept, counts, width = tokens.budget(site), tokens.counts, tokens.hidden.shape[-1]
        if kept == counts:
            return 0
        n_basis = [min(self.basis, k) for k in kept]
        targets = [k - few or few for k, few in zip(kept, n_basis)]
        work = bases.farthest_flops(counts, n_basis, width) + merge.products(counts, targets, width)
        return work + bases.approximation_flops(counts, n_basis, width)
