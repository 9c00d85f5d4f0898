"""VisToG (reconstruction): semantic tokens travel with the patches through the vision tower, and then gather them in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.answers import Answer as SaidAnswer
from foveate.answers import Append, Sight
from foveate.learning import Stage, keep_all
from foveate.losses import Answer
from foveate.method import Host, Paper, Site
from foveate.ops import select
from foveate.ops.relax import assigned_pairs, soft_assign
from foveate.ops.segments import segment_sum, within
from foveate.pruners import EntryPruner
from foveate.schedule import check_within
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

RANKS = 64  # embeddings: a longer row of semantic tokens begins with the first one again
INNER = 256
#: who sees whom in the tower: patches, semantic tokens, and special tokens such as CLS
SEES = ((1, 0, 1), (1, 1, 1), (1, 0, 1))


@dataclass(frozen=True)
class VisToG(EntryPruner):
    """At the tower's output each patch joins one of a few semantic tokens, which have seen all patches (a reconstruction).

    From the abstract: semantic tokens stand beside the patches from the first block on; isolated attention keeps patches from
    seeing them; before the projector a grouping layer gathers similar patches in each, and these groups are what the language
    model is given; trained in two stages, of which the second tunes the language model as well. Ours, as neither the text nor
    code could be read: a ninth of the tokens by default, evenly spaced over the image; a semantic token begins as the patch at
    its place, whose position it has, plus an embedding of its rank; a patch joins the one with the largest product of learned
    queries and keys, its own patch always; a group is the mean of its patches and its semantic token; gradients go straight
    through the hard choice to its probability; the first stage trains the module alone, the second LoRA as well.

    Attributes:
        noise: Gumbel noise in training, as a share of what would make the choice a draw.
    """

    noise: float = 0.0

    usual: ClassVar[float] = 1 / 9
    training_free: ClassVar[bool] = False
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage((Answer(),), lr=1e-3),
        Stage((Answer(),), lr=2e-4, trains=("parts", "lora")),
    )
    paper: ClassVar[Paper] = Paper(
        "Efficient Multi-modal Large Language Models via Visual Token Grouping", "arXiv", 2024, "2411.17773"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the noise that would make the choice a draw", noise=self.noise)

    def sites(self, host: Host) -> Sequence[Site]:
        if self.share in (0, 1):
            return [Site.output(self.share)]
        read = (Signal("hidden", of="appended"),)
        return [Site.append(0, keep=self.share), Site.tower(0, action="sight"), Site.output(self.share, signals=read)]

    def modules(self, host: Host) -> nn.ModuleDict:
        semantic, width = nn.Embedding(RANKS, host.tower_width), host.output_width
        query, key = (nn.Sequential(nn.LayerNorm(width), nn.Linear(width, INNER)) for _ in range(2))
        nn.init.normal_(semantic.weight, std=1e-3)
        key.load_state_dict(query.state_dict())  # what is alike has a large product
        return nn.ModuleDict({"semantic": semantic, "query": query, "key": key})

    def answer(self, tokens: Tokens, site: Site) -> SaidAnswer:
        if site.action == "sight":
            return Sight(tokens.appended.long(), torch.tensor(SEES).bool())
        if site.action == "append":
            counts, device = tokens.budget(site), tokens.index.device
            tokens.state["counts"] = counts
            place = select.stride(tokens.counts, counts, device)
            added: Tensor = self.learned["semantic"](within(counts, device) % RANKS)
            return Append(tokens.hidden[place] + added, counts, tokens.coords[place, 1:])
        return super().answer(tokens, site)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.keep == 1:
            return keep_all(tokens)
        counts, device = tokens.state["counts"], tokens.index.device
        semantic = tokens.signal(site.asked[0])
        place = select.stride(tokens.counts, counts, device)
        query, key = self.learned["query"](tokens.hidden), self.learned["key"](semantic)
        noise = self.noise if self.learned.training else 0.0
        chance, group = soft_assign(query / INNER**0.5, key, tokens.counts, counts, noise)
        group[place] = torch.arange(len(place), device=device)
        gate = (chance + 1.0 - chance.detach()).index_fill(0, place, 1.0)
        merged = tokens.merge_into(place, counts, group)
        assert merged.sizes is not None
        weighed = (tokens.sizes * gate)[:, None] * tokens.hidden.float()
        total = segment_sum(weighed, group, len(place) + 1)[:-1] + semantic.float()
        return replace(merged, hidden=(total / (merged.sizes + 1)[:, None]).to(tokens.hidden.dtype))

    def flops(self, tokens: Tokens, site: Site) -> int:
        if site.action != "reduce" or site.keep in (0, 1):
            return 0
        counts: tuple[int, ...] = tokens.state["counts"]
        rows = len(tokens) + sum(counts)
        return 2 * INNER * (tokens.hidden.shape[-1] * rows + assigned_pairs(tokens.counts, counts))
