"""SparseVLM+: words that are about the image rate its tokens, in the heads that look at it, however near it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Host, Paper, Site
from foveate.methods.sparsevlm import IMAGE, WORDS, raters
from foveate.ops.segments import segment_sum
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, check_within
from foveate.signal import Signal
from foveate.tokens import Tokens

HEADS, TURNS = Signal("text_rows", heads=True), Signal("rope", of="text")
LEAST = 0.01  # of the attention that two equal vectors would pay without positions


@dataclass(frozen=True)
class SparseVLMPlus(DecoderPruner):
    """Keep what the raters among the words attend to in some heads, divided by what their distance alone would make of it.

    There is no paper of its own yet, so this is what the authors' code does where it is switched to version 2. As in
    `SparseVLM`: raters, and 300, 200 and here 118 of 576 tokens after layers 2, 6 and 15 of 32, counted from 0, by their
    attention. New there: attention is divided by the product of two vectors of ones that rotary embeddings have turned as the
    word and the token are, which falls with their distance; the 14 of 32 heads in which raters then look at the image most are
    counted; nothing is recycled; original positions. Ours: the words of the question rate; each sample has heads of its own
    (the code: the first one's); so does any number of heads (``heads``); only turned channels count, and where that product is
    less than a hundredth of the largest, as it can be far away, it counts as that.

    Attributes:
        layers: decoder layers before which tokens leave; by default see above.
        ratios: share of the tokens present that survives at each of them; by default see above.
        heads: share of the heads that count.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    heads: float = 14 / 32

    signals: ClassVar[tuple[Signal | str, ...]] = (HEADS, "text_place", IMAGE, WORDS, "rope", TURNS)
    paper: ClassVar[Paper] = Paper(
        "SparseVLM+: Visual Token Sparsification with Improved Text-Visual Attention Pattern",
        "arXiv",
        2025,
        "2410.04417",
        "Gumpest/SparseVLMs",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the heads", heads=self.heads)

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((3, 7, 16), (300 / 576, 200 / 300, 118 / 200), 32, host.layers, first=1)

    def nearness(self, tokens: Tokens, sample: Tensor) -> Tensor:
        """What the distance alone makes of attention: ``(N, R)`` for each column of ``text_rows``, 1 at the same place."""
        turned, words = (x.float().flatten(1) for x in (tokens.rope, tokens.signal(TURNS)))
        along = turned @ words.T / tokens.rope.shape[-1]
        return along.gather(1, tokens.text_place[sample].clamp(min=0)).clamp(min=LEAST)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        sample, paid = tokens.sample, tokens.signal(HEADS).float()  # (N, H, R)
        rates = raters(tokens, sample)
        weight = rates[sample] / self.nearness(tokens, sample)
        paid = (paid * weight[:, None]).sum(-1)
        of_heads = segment_sum(paid, sample, len(rates))  # (B, H)
        count = max(1, int(self.heads * paid.shape[1]))
        best = torch.zeros_like(of_heads).scatter(1, of_heads.topk(count, dim=1).indices, 1.0)
        return (paid * best[sample]).sum(1)

    def flops(self, tokens: Tokens, site: Site) -> int:
        words, width = tokens.signal(WORDS), tokens.hidden.shape[-1]
        return 2 * len(tokens) * len(words) * (width + tokens.rope[0].numel())
