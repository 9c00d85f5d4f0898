"""CDPruner: a determinantal process keeps tokens that differ from each other and bear on the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.method import Paper, Site
from foveate.ops import diverse
from foveate.ops.segments import normalise, segment_max
from foveate.pruners import EntryPruner
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

#: what the authors' code adds to a relevance from 0 to 1, in its units, so that none is zero
LEAST = 1e-6


@dataclass(frozen=True)
class CDPruner(EntryPruner):
    """Where image and text meet, greedily keep the tokens whose kernel of similarity and relevance has the largest determinant.

    From the paper (section 3): the kernel of two tokens is the cosine of their projected features, times the relevance of both
    to the instruction, from 0 to 1 in an image; the set with the largest determinant is found greedily, with an incremental
    Cholesky factor. From the authors' code: 64 of 576 tokens. Ours: the relevance is the mean cosine with the embeddings of the
    question's words in the language model, as no text encoder is paired with the tower here (the code: CLIP's, of chunks of the
    question, and the sign of the cosine turned, as patches of CLIP are like what they do not show); each image has its own
    range (the code: the batch); all images of the batch at once; when the tokens chosen span all there is, the most relevant
    follow (the code divides by zero); original positions; without a question, or where all are as relevant, similarity alone.
    """

    signals: ClassVar[tuple[Signal | str, ...]] = ("text", "text_place")
    usual: ClassVar[float] = 64 / 576
    paper: ClassVar[Paper] = Paper(
        "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
        "NeurIPS",
        2025,
        "2506.10967",
        "Theia-4869/CDPruner",
    )

    def relevance(self, tokens: Tokens) -> Tensor:
        """How relevant each token is to the question of its sample, from 0 to 1 in its image: ``(N,)``."""
        place = tokens.text_place
        words = torch.nn.functional.pad(normalize(tokens.text.float(), dim=-1), (0, 0, 0, 1))  # the last one: none
        words = words[torch.where(place < 0, len(words) - 1, place)].sum(1) / (place >= 0).sum(1, True).clamp(min=1)
        alike = (normalize(tokens.hidden.float(), dim=-1) * words[tokens.sample]).sum(-1)
        segment, n = tokens.segment, len(tokens.counts)
        size = segment_max(alike, segment, n) + segment_max(-alike, segment, n)
        return torch.where(size[segment] > LEAST, normalise(alike, tokens.counts, "range") + LEAST, 1.0)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept = tokens.budget(site)
        if kept == tokens.counts:
            return Reduction(torch.arange(len(tokens), device=tokens.index.device), kept)
        return Reduction(diverse.determinantal(tokens.hidden, self.relevance(tokens), tokens.counts, kept), kept)

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept = tokens.budget(site)
        return 0 if kept == tokens.counts else diverse.determinantal_flops(tokens.counts, kept, tokens.hidden.shape[-1])
