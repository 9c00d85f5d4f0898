"""SparseVLM (arXiv 2410.04417): words that are about the image rate its tokens, and some of what leaves is recycled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate import Host, Reduction, Signal, Site, Tokens
from foveate.ops.merge import nearest_target
from foveate.ops.segments import offsets, ranges, segment_mean
from foveate.ops.select import best_first, rank, stride
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, check_ratio

IMAGE, WORDS = Signal("hidden", 0), Signal("hidden", 0, of="text")  # as they enter the language model


@dataclass(frozen=True)
class SparseVLM(DecoderPruner):
    """Keep what the raters among the words attend to; merge the best of the rest into a few tokens.

    From the paper: raters are the text tokens that are at least as similar to the image as the mean, by embeddings; their mean
    attention ranks visual tokens; a share ``tau`` of those pruned is clustered and merged. From the authors' code: layers 2, 6
    and 15 of 32 with 300, 200 and 110 of 576 tokens, and a cluster for ten tokens, and one. Ours: the words of the question
    rate; clusters are part of the budget, and their centres are spaced evenly by score, where the code finds density peaks.

    Attributes:
        layers: decoder layers before which tokens leave; by default see above.
        ratios: share of the tokens present that survives at each of them; by default see above.
        tau: share of the pruned tokens that is recycled.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    tau: float = 0.3

    signals: ClassVar[tuple[Signal | str, ...]] = ("text_rows", "text_place", IMAGE, WORDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("tau", self.tau)

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((2, 6, 15), (300 / 576, 200 / 300, 110 / 200), 32, host.layers, first=1)

    def raters(self, tokens: Tokens, sample: Tensor) -> Tensor:
        """Which columns of ``text_rows`` rate, ``(B, R)``."""
        place = tokens.text_place
        alike = tokens.signal(IMAGE).float() @ tokens.signal(WORDS).float().T
        alike = alike.gather(1, place[sample].clamp(min=0)).masked_fill(place[sample] < 0, -torch.inf)
        about = segment_mean(alike.softmax(1), sample, len(place))
        return (place >= 0) & (about >= about.sum(1, True) / (place >= 0).sum(1, True))

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        sample = tokens.sample
        rates = self.raters(tokens, sample)[sample]
        return (tokens.text_rows * rates).sum(1) / rates.sum(1).clamp(min=1)

    def counts(self, tokens: Tokens, site: Site) -> tuple[list[int], list[int], list[int]]:
        """Of every image how many are kept as they are, how many more are recycled, and how many are left of these."""
        left = tokens.budget(site)
        pruned = [n - k for n, k in zip(tokens.counts, left, strict=True)]
        clusters = [min(int(self.tau * n) // 10 + 1, k // 2) if n else 0 for n, k in zip(pruned, left, strict=True)]
        recycled = [c and max(c, int(self.tau * (n + c))) for n, c in zip(pruned, clusters, strict=True)]
        return [k - c for k, c in zip(left, clusters, strict=True)], recycled, clusters

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        score, (best, again, clusters) = self.score(tokens, site), self.counts(tokens, site)
        order = best_first(score, tokens.counts)
        starts, device = offsets(tokens.counts)[:-1], score.device
        recycled = order[ranges([s + k for s, k in zip(starts, best, strict=True)], again, device)]
        centre = recycled[stride(again, clusters, device)].sort().values
        keep = torch.cat([order[ranges(starts, best, device)], centre]).sort().values

        group = rank(keep, len(tokens))
        group[recycled] = group[centre[nearest_target(tokens.hidden, tokens.counts, centre, clusters)[recycled]]]
        return tokens.merge_into(keep, tokens.budget(site), group)

    def flops(self, tokens: Tokens, site: Site) -> int:
        _, _, clusters = self.counts(tokens, site)
        compared = len(tokens.counts) * max(tokens.counts, default=0) * max(clusters, default=0)
        return 2 * (len(tokens) * len(tokens.signal(WORDS)) + compared) * tokens.hidden.shape[-1]
