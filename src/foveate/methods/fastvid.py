"""FastVID: of each frame stays what receives attention, and a few frames of each scene hold the rest, merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch.nn.functional import pad

from foveate.method import Host, Method, Paper, Site
from foveate.ops import clusters, frames, merge, select
from foveate.ops.segments import segment_mean
from foveate.pruners import EntryPruner
from foveate.schedule import COSINE, check_within, spread
from foveate.tokens import Reduction, Tokens

BEFORE = {"tower_output", "lm_entry"}
CUTS, EVERY = 7, 4  # least alike neighbours; frames from one with anchors to the next


@dataclass(frozen=True)
class FastVID(EntryPruner):
    """Cut a video into scenes, keep the salient tokens of each frame, and merge the others into anchors of every fourth one.

    From the paper and the authors' code: frames of a scene follow each other with a cosine of mean tokens of at least ``tau``,
    and the 7 least alike neighbours are of two scenes in any case; 0.6 of a frame's budget are its tokens with most attention;
    the rest is for a scene's last frame and every fourth before it, whose anchors are density peaks of 4 neighbours; other
    tokens of the scene join the anchor most like them, and it becomes 0.6 of itself and the mean of all; a tenth stays, in
    place. Ours: global features are mean tokens, and attention received in the tower's last block says what is salient, before
    the projector (as the code has it for Qwen2.5-VL); where frames are known only as they enter the language model, all
    survivors are anchors; a token joins one anchor of its scene (the code: one in each such frame); equal densities are apart
    (the code: by noise); exact counts: what anchor frames cannot hold is salient in the others. An image is a video of one
    frame, as is one of unknown videos.

    Attributes:
        segments: ``dynamic`` scenes, the default; ``none``: each frame alone, as of images.
        tau: cosine below which a new scene begins.
        context: share of the survivors that are anchors.
    """

    segments: Literal["dynamic", "none"] | None = None
    tau: float = 0.9
    context: float = 0.4

    usual: ClassVar[float] = 0.1
    fixed_budget: ClassVar[bool] = False  # of a frame
    paper: ClassVar[Paper] = Paper(
        "FastVID: Dynamic Density Pruning for Fast Video Large Language Models",
        "NeurIPS",
        2025,
        "2503.11187",
        "LunarShen/FastVID",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(COSINE, tau=self.tau)
        check_within("a share of the survivors", context=self.context)

    @property
    def temporal(self) -> bool:
        return self.segments == "dynamic"

    def resolve(self, host: Host) -> Method:
        return self if self.segments else replace(self, segments="dynamic" if host.frames & BEFORE else "none")

    def sites(self, host: Host) -> Sequence[Site]:
        if "tower_output" in host.frames or "lm_entry" not in host.frames:
            return [Site.output(self.share, signals=("received",) if self.share else ())]
        return [Site.entry(self.share)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        x, n, counts = tokens.hidden, len(tokens), tokens.counts
        salient, anchors, scenes = self._plan(tokens, site)
        best = select.top_k(tokens.received, counts, salient) if sum(salient) else tokens.index[:0]
        others = tokens.segment.index_fill(0, best, len(counts))
        centres, _ = clusters.around_peaks(x, counts, others, [*anchors, 0], neighbours=4, up_to_centres=False)
        near = merge.nearest_target(x, [n for n, _ in scenes], centres, [k for _, k in scenes])
        centre = pad(centres, (0, 1), value=n)[near].index_copy(0, best, best)
        keep = torch.cat([best, centres]).sort().values
        group = pad(select.rank(keep, n), (0, 1), value=len(keep))[centre]
        reduction = tokens.merge_into(keep, tuple(a + b for a, b in zip(salient, anchors)), group)
        mean = segment_mean(x, group, len(keep) + 1)[:-1]
        return replace(reduction, hidden=torch.lerp(x[keep], mean, 0.4))

    def _plan(self, tokens: Tokens, site: Site) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """How many tokens of each frame are salient, and how many anchors; the tokens and anchors of each scene."""
        kept, counts = tokens.budget(site), tokens.counts
        context = 1.0 if site.at == "lm_entry" else self.context
        salient, anchors = [k - int(context * k) for k in kept], [0] * len(counts)
        scenes: list[tuple[int, int]] = []
        for scene in self._scenes(tokens):
            rest = sum(kept[span] - salient[span] for span in scene)
            holds = scene[::-1][::EVERY][::-1]
            room = [counts[span] - salient[span] for span in holds]
            for span, few in zip(holds, spread(min(rest, sum(room)), [1] * len(holds), room)):
                anchors[span] = few
            over, free = max(0, rest - sum(room)), [span for span in scene if span not in holds]
            room = [counts[span] - salient[span] for span in free]
            for span, few in zip(free, spread(over, room, room)):
                (anchors if site.at == "lm_entry" else salient)[span] += few
            scenes.append((sum(counts[span] for span in scene), sum(anchors[span] for span in scene)))
        return salient, anchors, scenes

    def _scenes(self, tokens: Tokens) -> list[list[int]]:
        """The frames of each scene; asks the device."""
        videos = list(map(len, tokens.spans.clips))
        return frames.scenes_of(tokens.hidden, tokens.counts, videos, self.tau if self.temporal else 2.0, CUTS)

    def flops(self, tokens: Tokens, site: Site) -> int:
        _, _, scenes = self._plan(tokens, site)
        n, k, width = [n for n, _ in scenes], [k for _, k in scenes], tokens.hidden.shape[-1]
        return clusters.products(tokens.counts, width) + (merge.products(n, k, width) if sum(k) else 0)
