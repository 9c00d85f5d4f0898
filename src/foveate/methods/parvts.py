"""ParVTS: two groups of tokens go side by side without seeing each other, then one leaves (a reconstruction)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from foveate.answers import Answer, Sight
from foveate.method import Host, Paper, Site
from foveate.ops import select
from foveate.ops.segments import segment_mean
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule
from foveate.signal import Signal
from foveate.tokens import Tokens

SUBJECT, REST = 0, 1


@dataclass(frozen=True)
class ParVTS(DecoderPruner):
    """Keep subject and other tokens apart in the first layers, on one text, then drop the others (a reconstruction).

    From the abstract: visual tokens are split into subject and non-subject groups, which are processed in parallel, so that
    both move their semantics into the question's tokens; the non-subject path is discarded mid-inference; up to 88.9 % pruned.
    Ours, as the rule that splits, the depth and the fusion are not known: the subject is what differs most (L2) from the mean
    token of its image, where image and text meet, or what the tower looks at most (``subject="attention"``); layer 3, which a
    simulation by others has; a mask keeps the two groups apart on one text, which sees both, in place of two copies of the text
    that are fused, so there are no weights of fusion, and no option for them: the first layers cost what they cost in the stock
    model, and those after the cut are shorter. Original position ids; a share of 1 or 0 has no two groups.

    Attributes:
        layer: decoder layer before which the other tokens leave; by default 3.
        subject: what makes a token one of it: ``distance`` from the mean token, the default; or ``attention`` of the CLS token
            in the last vision block, received attention where there is none.
        ratio: share of an image's tokens that is its subject, and stays; by default 1/9.
    """

    layer: int | None = None
    ratio: float | None = None
    subject: Literal["distance", "attention"] = "distance"

    paper: ClassVar[Paper] = Paper(
        "Parallel Vision Token Scheduling for Fast and Accurate Multimodal LMMs Inference", "arXiv", 2025, "2511.18875"
    )

    def usual(self, host: Host) -> Schedule:
        return Schedule(((3, 1 / 9),))

    def sites(self, host: Host) -> Sequence[Site]:
        ((layer, ratio),) = self.plan(host).stages
        by_attention = self.subject == "attention" and 0 < ratio < 1
        read = (Signal("cls_row" if host.has_cls else "received", at="tower"),) if by_attention else ()
        if layer > 0 and 0 < ratio < 1:
            return [Site.sight(keep=ratio, signals=read), Site.decoder(layer, ratio)]
        return [Site.decoder(layer, ratio, signals=read)]

    def answer(self, tokens: Tokens, site: Site) -> Answer:
        if site.action == "reduce":
            return super().answer(tokens, site)
        score = _prominence(tokens, site)
        tokens.state["score"] = tokens.name, score
        stays = select.top_k(score, tokens.counts, tokens.budget(site))
        group = torch.full_like(tokens.index, REST).index_fill(0, stays, SUBJECT)
        sees = torch.ones(3, 3, dtype=torch.bool)
        sees[SUBJECT, REST] = sees[REST, SUBJECT] = False
        return Sight(group, sees)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        if "score" not in tokens.state:
            return _prominence(tokens, site)
        name, score = tokens.state["score"]  # of all tokens that there were when the groups were made
        name, order = name.sort()
        place = torch.searchsorted(name, tokens.name).clamp(max=len(name) - 1)
        found: Tensor = score[order[place]]
        return found


def _prominence(tokens: Tokens, site: Site) -> Tensor:
    """``(N,)``: how far each token is from the mean of its image or frame, or how much attention the tower paid it."""
    for asked in site.asked:
        return tokens.signal(asked)[..., None].float().flatten(1).mean(1)  # over heads, if there are
    hidden = tokens.hidden.float()
    mean = segment_mean(hidden, tokens.segment, len(tokens.counts))
    distance: Tensor = torch.linalg.vector_norm(hidden - mean[tokens.segment], dim=-1)
    return distance
