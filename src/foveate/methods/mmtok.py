"""MMTok: tokens that together cover the words of the question and the rest of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.errors import ConfigError
from foveate.method import Paper, Site
from foveate.ops import cover
from foveate.pruners import EntryPruner
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

SHARP = 0.02, 0.2  # temperatures of the softmax over the tokens, of a word and of a token


@dataclass(frozen=True)
class MMTok(EntryPruner):
    """Where image and text meet, greedily keep the tokens that cover the question's words and the image's tokens best.

    From the paper: how much a token covers a word, or another token, is the softmax over the image of their similarity; a set
    covers what its best token does; what is maximised is the mean coverage of the words plus ``alpha`` times that of the
    tokens, of which a greedy choice reaches 63 % at least. From the authors' code: cosines with temperatures of 0.02 for words
    and 0.2 for tokens; words are embeddings of the language model, compared with projected features; 64 of 576. Ours: tokens
    are compared with each other as they are there, too (the code: as the tower puts them out); all words of the question (the
    code: without stop words); all images of the batch at once, each with the words of its own sample; original positions;
    without a question the tokens alone.

    Attributes:
        alpha: weight of the image's tokens; 0: the words alone.
    """

    alpha: float = 0.5

    signals: ClassVar[tuple[Signal | str, ...]] = ("text", "text_place")
    usual: ClassVar[float] = 64 / 576
    paper: ClassVar[Paper] = Paper(
        "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs",
        "ICLR",
        2026,
        "2508.18264",
        "Ironieser/MMTok",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ConfigError(f"mmtok: alpha={self.alpha}: give the weight of the image's tokens, 0 or more")

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept = tokens.budget(site)
        if kept == tokens.counts:
            return Reduction(torch.arange(len(tokens), device=tokens.index.device), kept)
        sample = torch.tensor(tokens.spans.sample, dtype=torch.long).to(tokens.index.device, non_blocking=True)
        words = tokens.text, tokens.text_place[sample]
        keep = cover.covering(tokens.hidden, tokens.counts, kept, *words, sharp=SHARP, weight=self.alpha)
        return Reduction(keep, kept)

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept = tokens.budget(site)
        if kept == tokens.counts:
            return 0
        return cover.covering_flops(tokens.counts, kept, tokens.text_place.shape[1], tokens.hidden.shape[-1])
