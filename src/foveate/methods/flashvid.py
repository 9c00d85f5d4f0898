"""FlashVID: each frame keeps what differs and is looked at, trees over time hold the rest, and the decoder prunes once more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.method import Host, Method, Paper, Site
from foveate.ops import clusters, diverse, frames, select
from foveate.pruners import StagedPruner
from foveate.schedule import COSINE, Schedule, check_within, survivors
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

BEFORE = {"tower_output", "lm_entry"}
CUTS = 7  # least alike neighbours, so that there are eight scenes


@dataclass(frozen=True)
class FlashVID(StagedPruner):
    """Keep diverse tokens of each frame, merge the others along trees over the frames of a scene, and prune in the decoder.

    From the paper and the authors' code: 0.7 of a frame's budget are picked one by one, each the token with the largest product
    of its attention and its cosine distance from those picked; of the others each joins the token most like it in the frame
    before, if their cosine is above ``tau`` and that is of the same scene; a tree becomes its mean, and the trees of a frame
    become clusters around density peaks of 7 neighbours, by plain means; a new scene begins where frames have mean tokens of a
    cosine below 0.9, and there are 8 at least; 5/16 of a video are left, and 0.3 of these from layer 20 of 28 on, by attention
    of the last token, so a fourth on average. Ours: attention received in the tower's last block, before the projector; where
    frames are known only as they enter the language model, distances alone; the mean of a tree is of all its members (the code
    divides by 1 and those that joined its root); counts are exact: so many of the most alike join that the budget is left.
    An image is a video of one frame, as is one of unknown videos.

    Attributes:
        layers: where tokens leave: 0 is before the language model, others in the decoder; by default 0 and 5/7 of the depth.
        ratios: share of the tokens present that survives at each of them; by default 5/16 and 0.3.
        segments: ``dynamic`` scenes, the default; ``none``: each frame alone, as of images.
        tau: cosine above which a token joins one of the frame before.
        diverse: share of the survivors that are picked.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    segments: Literal["dynamic", "none"] | None = None
    tau: float = 0.8
    diverse: float = 0.7

    signals: ClassVar[tuple[Signal | str, ...]] = ("last_row",)
    fixed_budget: ClassVar[bool] = False  # of a frame
    paper: ClassVar[Paper] = Paper(
        "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging",
        "ICLR",
        2026,
        "2602.08024",
        "Fanziyang-v/FlashVID",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(COSINE, tau=self.tau)
        check_within("a share of the survivors", diverse=self.diverse)

    @property
    def temporal(self) -> bool:
        return self.segments == "dynamic"

    def resolve(self, host: Host) -> Method:
        return self if self.segments else replace(self, segments="dynamic" if host.frames & BEFORE else "none")

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((0, 20), (5 / 16, 0.3), 28, host.layers)

    def before(self, share: float, host: Host) -> Site:
        if "tower_output" in host.frames or "lm_entry" not in host.frames:
            return Site.output(share, signals=("received",) if share else ())
        return Site.entry(share)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.last_row.float().mean(-1)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.at == "decoder":
            return super().reduce(tokens, site)
        x, n, counts, picks = tokens.hidden, len(tokens), tokens.counts, self._picks(tokens, site)
        rest = [k - few for k, few in zip(tokens.budget(site), picks)]
        weight = tokens.received if site.at == "tower_output" else torch.ones_like(tokens.sizes)
        best = diverse.weighted_spread(x, weight, counts, picks)
        free = torch.ones_like(tokens.index, dtype=torch.bool).index_fill(0, best, False)
        into, left = frames.trees(x, counts, self._scenes(tokens), free, self.tau, rest)
        stands = free & (into == torch.arange(n, device=into.device))
        group = torch.where(stands, tokens.segment, len(counts))
        centres, centre, values = frames.clustered(x, counts, into, group, [*left, 0], up_to_centres=True)
        keep, order = torch.cat([best, centres]).sort()
        joined = pad(select.rank(keep, n), (0, 1), value=len(keep))[centre.index_copy(0, best, best)]
        reduction = tokens.merge_into(keep, tuple(a + b for a, b in zip(picks, left)), joined)
        return replace(reduction, hidden=torch.cat([x[best], values])[order])

    def _picks(self, tokens: Tokens, site: Site) -> list[int]:
        """How many tokens of each frame are picked."""
        return [survivors(k, self.diverse, least=0) for k in tokens.budget(site)]

    def _scenes(self, tokens: Tokens) -> list[list[int]]:
        """The frames of each scene; asks the device."""
        videos = list(map(len, tokens.spans.clips))
        return frames.scenes_of(tokens.hidden, tokens.counts, videos, 0.9 if self.temporal else 2.0, CUTS)

    def flops(self, tokens: Tokens, site: Site) -> int:
        if site.at == "decoder":
            return 0
        width, scenes = tokens.hidden.shape[-1], self._scenes(tokens)
        work = diverse.weighted_spread_flops(tokens.counts, self._picks(tokens, site), width)
        return work + frames.best_before_flops(tokens.counts, scenes, width) + clusters.products(tokens.counts, width)
