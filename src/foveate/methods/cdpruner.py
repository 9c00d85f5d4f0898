"""CDPruner: a determinantal process keeps tokens that differ from each other and bear on the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.errors import ConfigError
from foveate.method import Host, Method, Paper, Site
from foveate.ops import diverse
from foveate.ops.segments import normalise, segment_max
from foveate.paired import check, check_folder, paired, tokenizer
from foveate.pruners import EntryPruner
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

#: what the authors' code adds to a cosine above the least one, so that no relevance is zero
LEAST = 1e-6
PATCHES = Signal("hidden", at="tower")  # as the tower puts them out


@dataclass(frozen=True)
class CDPruner(EntryPruner):
    """Where image and text meet, greedily keep the tokens whose kernel of similarity and relevance has the largest determinant.

    From the paper (section 3): the kernel of two tokens is the cosine of their projected features, times the relevance of both
    to the instruction, from 0 to 1 in an image; the set with the largest determinant is found greedily, with an incremental
    Cholesky factor. From the authors' code: 64 of 576 tokens; with ``text_model``, the relevance is minus the cosine of a
    patch in CLIP's space with the question there, the mean over parts of a question that is too long. Ours: without it, the
    mean cosine with the embeddings of the question's words in the language model; each image has its own range (the code: the
    batch); each part of a question has a beginning and an end; of SigLIP the pooling head sees each patch alone; of several
    patches of a token the mean; all images of the batch at once; when the tokens chosen span all there is, the most relevant
    follow (the code divides by zero); original positions; without a question, or where all are as relevant, similarity alone.

    Attributes:
        text_model: folder of the CLIP or SigLIP that the vision tower is from, text tower, projections and tokenizer included.
        tokenizer: with ``text_model``, the folder or name of this model's own, which spells the question; by default where the
            model was loaded from.
    """

    text_model: str | None = None
    tokenizer: str | None = None

    usual: ClassVar[float] = 64 / 576
    paper: ClassVar[Paper] = Paper(
        "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
        "NeurIPS",
        2025,
        "2506.10967",
        "Theia-4869/CDPruner",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer is not None and self.text_model is None:
            raise ConfigError("cdpruner: tokenizer spells the question for a text_model: give both or none")
        if self.text_model is not None:
            check_folder("cdpruner: text_model", self.text_model)

    def resolve(self, host: Host) -> Method:
        if self.text_model is None:
            return self
        check("cdpruner: text_model", self.text_model, host.output_width // host.output_rows)
        if self.tokenizer is None and not host.source:
            raise ConfigError(
                "cdpruner: text_model reads the question as words, and this model was loaded from nowhere: give tokenizer, the "
                "folder of this model's tokenizer"
            )
        return replace(self, tokenizer=self.tokenizer or host.source)

    def sites(self, host: Host) -> Sequence[Site]:
        read = ("text",) if self.text_model is None else ("text_ids", PATCHES)
        return [Site.entry(self.share, signals=(*read, "text_place"))]

    def likeness(self, tokens: Tokens) -> Tensor:
        """How much each token is like the question of its sample, ``(N,)``; by CLIP, how little."""
        if self.text_model is None:
            place = tokens.text_place
            words = torch.nn.functional.pad(normalize(tokens.text.float(), dim=-1), (0, 0, 0, 1))  # the last one: none
            words = words[torch.where(place < 0, len(words) - 1, place)].sum(1) / (place >= 0).sum(1, True).clamp(min=1)
            return (normalize(tokens.hidden.float(), dim=-1) * words[tokens.sample]).sum(-1)
        states = tokens.signal(PATCHES)
        by = paired(self.text_model, states.device, states.dtype)
        return -by.likeness(states, by.directions(self.questions(tokens))[tokens.sample])

    def questions(self, tokens: Tokens) -> list[str]:
        """Spell the question of each sample; asks the device."""
        assert self.tokenizer is not None, "resolve says it"
        ids, spells = tokens.text_ids.tolist(), tokenizer(self.tokenizer)
        asked = [[ids[i] for i in row if i >= 0] for row in tokens.text_place.tolist()]
        return [str(spells.decode(question, skip_special_tokens=True)).strip() for question in asked]

    def relevance(self, tokens: Tokens) -> Tensor:
        """How relevant each token is to the question of its sample, from 0 to 1 in its image: ``(N,)``."""
        alike, segment, n = self.likeness(tokens), tokens.segment, len(tokens.counts)
        size = (segment_max(alike, segment, n) + segment_max(-alike, segment, n))[segment]
        return torch.where(size > LEAST, normalise(alike, tokens.counts, "range") + LEAST / size, 1.0)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        kept = tokens.budget(site)
        if kept == tokens.counts:
            return Reduction(torch.arange(len(tokens), device=tokens.index.device), kept)
        return Reduction(diverse.determinantal(tokens.hidden, self.relevance(tokens), tokens.counts, kept), kept)

    def flops(self, tokens: Tokens, site: Site) -> int:
        kept = tokens.budget(site)
        if kept == tokens.counts:
            return 0
        work = diverse.determinantal_flops(tokens.counts, kept, tokens.hidden.shape[-1])
        if self.text_model is None:
            return work
        states = tokens.signal(PATCHES)
        by = paired(self.text_model, states.device, states.dtype)
        return work + by.flops(self.questions(tokens), states.numel() // by.width)
