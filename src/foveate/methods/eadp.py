"""EADP: tokens that represent the image where the words that point somewhere in it do not look."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from foveate.method import Paper, Site
from foveate.ops import cover, grid
from foveate.ops.segments import segment_max, segment_softmax, segment_sum
from foveate.pruners import EntryPruner
from foveate.schedule import check_within
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

SHARP, SHARPER = 100.0, 0.01  # of the softmax over the image for a word's entropy, and of that over words by entropies


@dataclass(frozen=True)
class EADP(EntryPruner):
    """Where image and text meet, greedily keep the tokens that represent the relevant ones best.

    From the paper: words whose similarity is spread over the whole image are noise, so those of least entropy speak for the
    question, beside all of it together; relevance is smoothed over the grid and made more extreme, and weighs the tokens that
    are to be represented (facility location). From the authors' code: relevance is minus the cosine, half that with the mean
    of the words and half that with the fifth of them of least entropy, of a softmax over the image at 100, weighed by a softmax
    of minus their entropies at 1/0.01; it is brought to 0 to 1 in each image, and smoothed by 3x3 cells of a Gaussian, mirrored
    at the border; ``(1 + cosine) / 2`` is how well a token represents another one; 128 of 576. Ours: words and tokens as they
    enter the language model (so in the code for Qwen models; for LLaVA in the space of CLIP, whose text tower it loads); only
    words after the image; smoothing leaves out cells that are gone; all images of the batch at once; original positions;
    without a question all tokens weigh the same.

    Attributes:
        alpha: weight of the mean of the words; 0: only words of least entropy.
        few: share of the words that count beside their mean, those of least entropy; at least one.
        beta: power of the relevance; by default 1, as in the code for LLaVA (for Qwen models and videos: 2).
    """

    alpha: float = 0.5
    few: float = 0.2
    beta: float = 1.0

    signals: ClassVar[tuple[Signal | str, ...]] = ("text", "text_place")
    usual: ClassVar[float] = 128 / 576
    paper: ClassVar[Paper] = Paper(
        "Combating Textual Noise and Redundancy: Entropy-Aware Dense Visual Token Pruning",
        "ECCV",
        2026,
        "2607.02484",
        "SJTU-DeepVisionLab/EADP",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share", alpha=self.alpha, few=self.few)
        check_within("a power", inf, beta=self.beta)

    def similarity(self, tokens: Tokens) -> Tensor:
        """How much each token is like the question of its image, ``(N,)``: cosines; without a question 0."""
        place, sample, segment, n = tokens.text_place, tokens.sample, tokens.segment, len(tokens.counts)
        text = pad(tokens.text.float(), (0, 0, 0, 1))  # the last one: none
        own = torch.where(place < 0, len(text) - 1, place)  # (B, R)
        image = normalize(tokens.hidden.float(), dim=-1)
        whole = (image * normalize(text[own].sum(1), dim=-1)[sample]).sum(-1)
        alike = (image @ normalize(text, dim=-1).T).gather(1, own[sample])  # (N, R)
        looks = segment_softmax(-SHARP * alike, segment, n)
        entropy = -segment_sum(looks * (looks + 1e-12).log(), segment, n)
        span = torch.tensor(tokens.spans.sample, dtype=torch.long).to(place.device, non_blocking=True)
        there = (place >= 0)[span]
        entropy = entropy.masked_fill(~there, torch.inf)
        count = (self.few * there.sum(1, keepdim=True)).long().clamp(min=1)
        counts = there & (entropy.argsort(dim=1, stable=True).argsort(dim=1) < count)
        weight = (-entropy / (SHARPER + 1e-6)).masked_fill(~counts, -torch.inf).softmax(1).masked_fill(~counts, 0.0)
        return self.alpha * whole + (1 - self.alpha) * (weight[segment] * alike).sum(1)

    def relevance(self, tokens: Tokens) -> Tensor:
        """How much each token weighs, ``(N,)``, more than 0."""
        alike, segment, n = self.similarity(tokens), tokens.segment, len(tokens.counts)
        most, least = segment_max(alike, segment, n), -segment_max(-alike, segment, n)
        relevance = (most[segment] - alike + 1e-6) / (most - least + 1e-6)[segment]
        return grid.smoothed(relevance, tokens.index, tokens.counts, tokens.spans.shape) ** self.beta

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept = tokens.budget(site)
        if kept == tokens.counts:
            return Reduction(torch.arange(len(tokens), device=tokens.index.device), kept)
        keep = cover.represented(tokens.hidden, self.relevance(tokens), tokens.counts, kept, shifted=True)
        return Reduction(keep, kept)

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept, width = tokens.budget(site), tokens.hidden.shape[-1]
        if kept == tokens.counts:
            return 0
        return cover.represented_flops(tokens.counts, kept, width) + 2 * len(tokens) * (len(tokens.text) + 1) * width
