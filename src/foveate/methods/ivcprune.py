"""IVC-Prune: what the question is about stays, and tokens whose positions are landmarks; all caches forget the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Host, Paper, Site, Unit
from foveate.ops import select
from foveate.ops.segments import attention_to, offsets
from foveate.pruners import SingleRatio, from_the_start
from foveate.schedule import check_within, survivors
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

WORDS, ANGLES = Signal("values", of="text"), Signal("rope", of="text")
SEEDS = 0.01  # of an image's tokens


@dataclass(frozen=True)
class IVCPrune(SingleRatio):
    """Choose tokens once in the middle of the decoder, by values and rotary angles, and drop the others from all caches, too.

    From the paper: positions where the rotary embedding is near the identity, or a quarter turn, are coordinates by which the
    model finds places, so their tokens stay; the others are chosen without positional bias, by values, in two steps. From the
    authors' code: the softmax over the image of the products of values, mean over heads, is how much a word of the question
    looks at a token; the best 1 % of that are seeds; these stay, a tenth of all with the largest mean cosine, a tenth with the
    largest mean sine, and of the others those that words and seeds look at most, until half are left, in position, before
    layer 16 of 28 of Qwen2.5-VL (by the values of the layer before), and in the caches of the layers before it when the prompt
    has ended. Ours: at any ratio coordinates are two fifths of what is left; angles are those from the first word on, which
    padding does not change, of all axes as the model turns them (the code: of each axis in all channels); every image by
    itself, with the words behind it.

    Attributes:
        ratio: share of an image's tokens that stays; by default 0.5.
        layer: decoder layer before which they are chosen; by default at 4/7 of the depth, where the layer before has a cache.
        coordinates: share of those that stay for their position.
    """

    layer: int | None = None
    coordinates: float = 0.4

    unit: ClassVar[Unit] = "cache"
    where: ClassVar[tuple[str, ...]] = ("layer",)
    paper: ClassVar[Paper] = Paper(
        "IVC-Prune: Revealing the Implicit Visual Coordinates in LVLMs for Vision Token Pruning",
        "ICLR",
        2026,
        "2602.03060",
        "FireRedTeam/IVC-Prune",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the survivors", coordinates=self.coordinates)

    def at(self, ratio: float, host: Host) -> Sequence[Site]:
        caches, usual = host.growing_caches, 4 / 7 * host.layers
        after = [layer + 1 for layer in caches if layer + 1 < host.layers] or [1]
        nearest = min(after, key=lambda layer: abs(layer - usual))
        layer = from_the_start(nearest if self.layer is None else self.layer, host)
        read = ("values", WORDS, "text_place", "rope", ANGLES) if ratio else ()
        return [
            Site.decoder(layer, ratio, signals=read),
            *(Site.cache(each, ratio) for each in caches if each < layer),
        ]

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        """How much words and seeds look at each token, by values; ``(N,)``; infinite of the seeds themselves."""
        place, counts = tokens.text_place, tokens.counts
        values, segment, n = tokens.values, tokens.segment, len(counts)
        by_words = attention_to(values, segment, n, tokens.signal(WORDS), place[tokens.sample])
        few = [survivors(n, SEEDS) for n in counts]
        seeds = select.top_k(by_words, counts, few)
        number = torch.arange(max(few, default=0), device=seeds.device)
        first, of = (torch.tensor(each).to(seeds.device, non_blocking=True) for each in (offsets(few)[:-1], few))
        own = torch.where(number < of[:, None], first[:, None] + number, -1)
        looked_at = by_words + attention_to(values, segment, n, values[seeds], own[segment])
        return looked_at.index_fill(0, seeds, torch.inf)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.at == "cache":
            return tokens.keep_chosen(tokens.state["chosen"])
        kept, counts = tokens.budget(site), tokens.counts
        of_each = [survivors(k, self.coordinates / 2, least=0) for k in kept]
        angles = self._angles(tokens)
        level = torch.zeros_like(tokens.index)
        for each in angles.unbind(1):
            level = level.index_fill(0, select.top_k(each, counts, of_each), 1)
        best_first = len(tokens) * level - select.rank_within(self.score(tokens, site), counts)
        reduction = Reduction(select.top_k(best_first, counts, kept), kept)
        tokens.state.setdefault("chosen", []).append(tokens.name[reduction.keep])  # a prompt may come in chunks
        return reduction

    def _angles(self, tokens: Tokens) -> Tensor:
        """Mean cosine and sine ``(N, 2)`` of the angles by which each token is turned from the first word of its sample."""
        words = torch.nn.functional.pad(tokens.signal(ANGLES).float(), (0, 0, 0, 0, 0, 1))
        none = len(words) - 1
        words[none, 0] = 1.0  # a sample without a word: no turn
        starts = [start if n else none for start, n in zip(offsets(tokens.text_counts), tokens.text_counts)]
        first = words[torch.tensor(starts, dtype=torch.long).to(words.device, non_blocking=True)][tokens.sample]
        (cos, sin), (cos_0, sin_0) = tokens.rope.float().unbind(1), first.unbind(1)
        return torch.stack([cos * cos_0 + sin * sin_0, sin * cos_0 - cos * sin_0], 1).mean(-1)

    def flops(self, tokens: Tokens, site: Site) -> int:
        if site.at == "cache":
            return 0
        rows = len(tokens.signal(WORDS)) + sum(survivors(n, SEEDS) for n in tokens.counts)
        return 2 * rows * tokens.values.numel()
