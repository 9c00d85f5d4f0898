"""DART: what duplicates a few pivot tokens leaves, whatever attention says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import select
from foveate.ops.segments import offsets
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, spread
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

WORDS, WORD_KEYS = Signal("text"), Signal("keys", of="text")


@dataclass(frozen=True)
class DART(DecoderPruner):
    """Before decoder layer ``layer``, keep pivots among the tokens, and for each pivot the tokens that resemble it least.

    From the paper (section 4): duplication matters more than importance; pivots are the tokens with the largest keys, and a
    ninth of the tokens stays (88.9 % leave). From two implementations by others that agree (the authors' could not be read):
    before layer 2, by the keys of the layer before, all heads together; 4 visual pivots and 4 words of the question; each pivot
    in turn takes as many of the tokens that are left, those with the least cosine to it. Ours: the L2 norm of keys (theirs is
    the L1 norm after RoPE, which changes with the position, and so with padding); cosines of hidden states before the layer,
    without the model's last norm; the visual pivots first, the largest first; exact counts, so that the pivots' shares differ
    by one; where the question has fewer words the visual pivots choose again.

    Attributes:
        layer: by default 2.
        ratio: share of an image's tokens that survives; by default 1/9.
        pivots: visual ones, and as many words.
    """

    layer: int | None = None
    ratio: float | None = None
    pivots: int = 4

    signals: ClassVar[tuple[Signal | str, ...]] = ("keys", WORD_KEYS, WORDS, "text_place")
    paper: ClassVar[Paper] = Paper(
        "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
        "EMNLP",
        2025,
        "2502.11494",
        "ZichenWen1/DART",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivots < 1:
            raise ConfigError(f"dart: pivots={self.pivots}: give at least 1")

    def usual(self, host: Host) -> Schedule:
        return Schedule(((2, 1 / 9),))

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept, counts, segment = tokens.budget(site), tokens.counts, tokens.segment
        n_pivots = [min(self.pivots, k) for k in kept]
        rank = select.rank_within(_size(tokens.keys), counts)
        largest = torch.tensor(n_pivots, dtype=torch.long).to(rank.device, non_blocking=True)
        chosen = rank < largest[segment]
        unit = normalize(tokens.hidden.float(), dim=-1)
        pivots = self._pivots(tokens, unit, rank)
        shares = [spread(k - few, [1] * 2 * self.pivots, [k] * 2 * self.pivots) for k, few in zip(kept, n_pivots)]
        for pivot, quota in zip(pivots.unbind(1), zip(*shares)):
            alike = (unit * pivot[segment]).sum(-1).masked_fill(chosen, torch.inf)
            chosen = chosen.index_fill(0, select.top_k(-alike, counts, quota), True)
        return Reduction(select.top_k(chosen.long(), counts, kept), kept)

    def _pivots(self, tokens: Tokens, unit: Tensor, rank: Tensor) -> Tensor:
        """Directions of the pivots of each image, ``(S, 2 * pivots, C)``; where one is missing, of the first ones again."""
        n, place = self.pivots, tokens.text_place
        words = pad(normalize(tokens.signal(WORDS).float(), dim=-1), (0, 0, 0, 1))  # there may be none
        place = pad(place, (0, max(0, n - place.shape[1])), value=-1)
        size = torch.where(place < 0, -torch.inf, pad(_size(tokens.signal(WORD_KEYS)), (0, 1))[place.clamp(min=0)])
        place = place.gather(1, size.argsort(dim=1, descending=True, stable=True)[:, :n])
        sample = torch.tensor(tokens.spans.sample, dtype=torch.long).to(unit.device, non_blocking=True)
        first = select.best_first(-rank.float(), tokens.counts)
        starts = torch.tensor([offsets(tokens.counts)[:-1], tokens.counts]).to(unit.device, non_blocking=True)
        visual = torch.arange(n, device=unit.device) % starts[1].clamp(min=1)[:, None] + starts[0][:, None]
        visual = unit[first[visual.clamp(max=len(first) - 1)]]
        place = place[sample]
        return torch.cat([visual, torch.where((place < 0)[..., None], visual, words[place.clamp(min=0)])], 1)


def _size(keys: Tensor) -> Tensor:
    """Norm ``(N,)`` of keys, all heads together, which rotary embeddings do not change."""
    size: Tensor = torch.linalg.vector_norm(keys.float().flatten(1), dim=-1)
    return size
