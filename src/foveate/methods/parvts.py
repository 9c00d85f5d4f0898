"""ParVTS: two groups of tokens go side by side without seeing each other, then one leaves (a reconstruction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.answers import Answer, Sight
from foveate.method import Host, Paper, Site
from foveate.ops import select
from foveate.ops.segments import segment_mean
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule
from foveate.tokens import Tokens

SUBJECT, REST = 0, 1


@dataclass(frozen=True)
class ParVTS(DecoderPruner):
    """Keep subject and other tokens apart in the first layers, where both tell the text what they say; then drop the others.

    From the abstract: visual tokens are split into subject and non-subject groups, which are processed in parallel, so that
    both move their semantics into the question's tokens; the non-subject path is discarded mid-inference; up to 88.9 % pruned.
    Ours, as the rule that splits, the depth and the fusion are not known: the subject is what differs most (L2) from the mean
    token of its image, where image and text meet; layer 3, which a simulation by others has; a mask keeps the two groups apart
    on one text, which sees both, in place of two copies of the text that are fused. So the first layers cost what they cost in
    the stock model, and those after the cut are shorter. Original position ids; a share of 1 or 0 has no two groups.

    Attributes:
        layer: decoder layer before which the other tokens leave; by default 3.
        ratio: share of an image's tokens that is its subject, and stays; by default 1/9.
    """

    layer: int | None = None
    ratio: float | None = None

    paper: ClassVar[Paper] = Paper(
        "Parallel Vision Token Scheduling for Fast and Accurate Multimodal LMMs Inference", "arXiv", 2025, "2511.18875"
    )

    def usual(self, host: Host) -> Schedule:
        return Schedule(((3, 1 / 9),))

    def sites(self, host: Host) -> Sequence[Site]:
        ((layer, ratio),) = self.plan(host).stages
        apart = [Site.sight(keep=ratio)] if layer > 0 and 0 < ratio < 1 else []
        return [*apart, Site.decoder(layer, ratio)]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "reduce":
            return super().answer(tokens, site)
        score = _prominence(tokens)
        tokens.state["score"] = tokens.name, score
        stays = select.top_k(score, tokens.counts, tokens.budget(site))
        group = torch.full_like(tokens.index, REST).index_fill(0, stays, SUBJECT)
        sees = torch.ones(3, 3, dtype=torch.bool)
        sees[SUBJECT, REST] = sees[REST, SUBJECT] = False
        return Sight(group, sees)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        if "score" not in tokens.state:
            return _prominence(tokens)
        name, score = tokens.state["score"]  # of all tokens that there were when the groups were made
        name, order = name.sort()
        place = torch.searchsorted(name, tokens.name).clamp(max=len(name) - 1)
        found: Tensor = score[order[place]]
        return found


def _prominence(tokens: Tokens) -> Tensor:
    """``(N,)``: how far each token is from the mean of its image or frame."""
    hidden = tokens.hidden.float()
    mean = segment_mean(hidden, tokens.segment, len(tokens.counts))
    distance: Tensor = torch.linalg.vector_norm(hidden - mean[tokens.segment], dim=-1)
    return distance
