"""SparseVLM: words that are about the image rate its tokens, and some of what leaves is recycled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Host, Paper, Site
from foveate.ops import clusters, select
from foveate.ops.segments import offsets, ranges, segment_ids, segment_mean
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, check_within
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

IMAGE, WORDS = Signal("hidden", 0), Signal("hidden", 0, of="text")  # as they enter the language model


def raters(tokens: Tokens, sample: Tensor) -> Tensor:
    """Which columns of ``text_rows`` rate, ``(B, R)`` bool: words as much about the image as the mean word.

    Args:
        tokens: with the signals ``text_place``, `IMAGE` and `WORDS`.
        sample: ``(N,)`` int64 of each token.
    """
    place = tokens.text_place
    alike = tokens.signal(IMAGE).float() @ tokens.signal(WORDS).float().T
    alike = alike.gather(1, place[sample].clamp(min=0)).masked_fill(place[sample] < 0, -torch.inf)
    about = segment_mean(alike.softmax(1), sample, len(place))
    return (place >= 0) & (about >= about.sum(1, True) / (place >= 0).sum(1, True))


@dataclass(frozen=True)
class SparseVLM(DecoderPruner):
    """Keep what the raters among the words attend to; merge the best of the rest into a few tokens.

    From the paper: raters are the text tokens that are at least as similar to the image as the mean, by embeddings; their mean
    attention ranks visual tokens; a share ``tau`` of those pruned is clustered and merged. From the authors' code: 300, 200
    and 110 of 576 tokens are left after layers 2, 6 and 15 of 32, counted from 0, by their attention; one more token is
    recycled, in a cluster for ten of them, and one, around density peaks of as many neighbours as there are clusters; a
    cluster becomes its mean. Ours: the words of the question rate; clusters are part
    of the budget, at most half of it, and stand where their centre was (the code adds them behind the others); equal densities
    are apart (the code: by noise); sizes count in means; shares are fixed (the first version took them from the rank of the
    attention); original positions (the code renumbers; `SparseVLMPlus` does not).

    Attributes:
        layers: decoder layers before which tokens leave; by default see above.
        ratios: share of the tokens present that survives at each of them; by default see above.
        tau: share of the pruned tokens that is recycled.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    tau: float = 0.3

    signals: ClassVar[tuple[Signal | str, ...]] = ("text_rows", "text_place", IMAGE, WORDS)
    paper: ClassVar[Paper] = Paper(
        "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
        "ICML",
        2025,
        "2410.04417",
        "Gumpest/SparseVLMs",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the pruned tokens", tau=self.tau)

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((3, 7, 16), (300 / 576, 200 / 300, 110 / 200), 32, host.layers, first=1)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        sample = tokens.sample
        rates = raters(tokens, sample)[sample]
        return (tokens.text_rows * rates).sum(1) / rates.sum(1).clamp(min=1)

    def _counts(self, tokens: Tokens, site: Site) -> tuple[list[int], list[int], list[int]]:
        """Of every image how many are kept as they are, how many more are recycled, and how many are left of these."""
        left = tokens.budget(site)
        pruned = [n - k for n, k in zip(tokens.counts, left)]
        into = [min(self._clusters(n), k // 2) if n else 0 for n, k in zip(pruned, left)]
        recycled = [c and min(n + c, max(c, int(self.tau * (n + c)) + 1)) for n, c in zip(pruned, into)]
        return [k - c for k, c in zip(left, into)], recycled, into

    def _clusters(self, gone: int) -> int:
        """How many clusters there are if so many tokens fewer are left: one for ten of those recycled, and one."""
        clusters = 0
        while clusters < (again := (int(self.tau * (gone + clusters)) + 1) // 10 + 1):
            clusters = again
        return clusters

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        score, (best, again, into) = self.score(tokens, site), self._counts(tokens, site)
        if not sum(into):
            return tokens.keep_best(score, site)
        order, starts = select.best_first(score, tokens.counts), offsets(tokens.counts)[:-1]
        recycled = order[ranges([start + k for start, k in zip(starts, best)], again, order.device)].sort().values
        centre, nearest = clusters.around_peaks(
            tokens.hidden[recycled], again, segment_ids(again, order.device), into, neighbours=max(into)
        )
        keep = torch.cat([order[ranges(starts, best, order.device)], recycled[centre]]).sort().values
        group = select.rank(keep, len(tokens))
        group = group.index_copy(0, recycled, group[recycled[nearest]])
        return tokens.merge_into(keep, tokens.budget(site), group)

    def flops(self, tokens: Tokens, site: Site) -> int:
        _, again, _ = self._counts(tokens, site)
        words, width = tokens.signal(WORDS), tokens.hidden.shape[-1]
        return 2 * len(tokens) * len(words) * width + clusters.products(again, width)
