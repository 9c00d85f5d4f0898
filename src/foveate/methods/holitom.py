"""HoliTom: what stands still in a video is merged over time and space, and the language model merges what it does not read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from foveate.errors import UnsupportedSiteError
from foveate.method import Host, Method, Paper, Site
from foveate.ops import clusters, merge, select, standstill
from foveate.ops.segments import segment_mean
from foveate.pruners import StagedPruner
from foveate.schedule import COSINE, Schedule, check_within, spread, survivors
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

BEFORE = {"tower_output", "lm_entry"}


@dataclass(frozen=True)
class HoliTom(StagedPruner):
    """Merge what stands still over the frames of a window, thin out the rest, and merge again in the middle of the decoder.

    From the paper and the authors' code: windows are cut to save most, by dynamic programming; a cell stands still if it is
    more alike than ``tau`` from frame to frame, and becomes its mean, in the first frame; those of a window become clusters
    around density peaks of 7 neighbours, a centre 0.6 of itself and the rest the mean of the others; of what moves, in each
    frame stays what receives most attention in the tower's last block; all in one proportion, so that 15 % are left; before
    layer 18 of 28 half of the video stays, by the last token's attention, and the others are averaged into those most like
    them, one by one. Ours: features of the tower, with 2x2 blocks as tokens (the code: projected ones); where frames are known
    only as they enter the language model, those there, and what moves becomes clusters, too; where still cells alone would
    leave less than the budget, the most alike merge; exact counts; no noise parts equal densities. An image is one frame.

    Attributes:
        layers: where tokens leave: 0 is before the language model, others in the decoder; by default 0 and 9/14 of the depth.
        ratios: share of the tokens present that survives at each of them; by default 0.15 and 0.5.
        segments: ``optimal`` windows; runs of frames of a mean ``similarity`` above tau; ``none``, usual where none are known.
        tau: cosine above which a cell stands still from one frame to the next; 0.8 at any budget (the code: 0.65 at a tenth).
        contextual: share of moving survivors that are centres of clusters; by default 0, or 1 without attention (see above).
        beta: share of a centre in its cluster.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    segments: Literal["optimal", "similarity", "none"] | None = None
    tau: float = 0.8
    contextual: float | None = None
    beta: float = 0.6

    signals: ClassVar[tuple[Signal | str, ...]] = ("last_row",)
    fixed_budget: ClassVar[bool] = False  # of a frame
    served_with: ClassVar[str] = 'segments="none"'
    paper: ClassVar[Paper] = Paper(
        "HoliTom: Holistic Token Merging for Fast Video Large Language Models",
        "NeurIPS",
        2025,
        "2505.21334",
        "cokeshao/HoliTom",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(COSINE, tau=self.tau)
        check_within("a share", contextual=self.contextual, beta=self.beta)

    @property
    def temporal(self) -> bool:
        return self.segments not in (None, "none")

    @property
    def has_fixed_budget(self) -> bool:
        return self.segments == "none"

    def resolve(self, host: Host) -> Method:
        return self if self.segments else replace(self, segments="optimal" if host.frames & BEFORE else "none")

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((0, 18), (0.15, 0.5), 28, host.layers)

    def before(self, share: float, host: Host) -> Site:
        if "tower_output" in host.frames or "lm_entry" not in host.frames:
            return Site.output(share, signals=("received",) if share and self.contextual != 1 else ())
        if self.contextual not in (None, 1):
            raise UnsupportedSiteError(f"holitom: lm_entry has no attention: contextual={self.contextual} has to be 1")
        return Site.entry(share)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.at != "decoder":
            return self._still(tokens, site)
        kept = tokens.pool_budget(site)
        keep = select.top_k(tokens.last_row.float().mean(-1), tokens.pool_counts, kept)
        group = merge.nearest_target(tokens.hidden, tokens.pool_counts, keep, kept)
        reduction = tokens.merge_into(keep, tokens.keep_pooled(keep, kept).counts, group)
        return replace(reduction, hidden=merge.one_by_one(tokens.hidden, keep, group))

    def _still(self, tokens: Tokens, site: Site) -> Reduction:
        n, counts, spans = len(tokens), tokens.counts, tokens.spans
        videos = [len(clip) for clip in spans.clips] if self.temporal else [1] * len(counts)
        kept = tokens.pool_budget(site) if self.temporal else tokens.budget(site)
        cut = standstill.runs if self.segments == "similarity" else standstill.stillest
        here = tokens.hidden, tokens.index, counts, spans.sizes
        into, group, sizes = standstill.merge_still(*here, videos, cut, self.tau, kept)
        left = [k for each, budget in zip(sizes, kept) for k in spread(budget, each, each)]
        context = float(site.at == "lm_entry") if self.contextual is None else self.contextual
        n_best = [survivors(k, 1 - context, least=0) if i % 2 else 0 for i, k in enumerate(left)]
        best = select.best_of_groups(tokens.received, group, [*n_best, 0]) if sum(n_best) else into[:0]
        n_centres = [*(k - b for k, b in zip(left, n_best)), 0]
        mean, rest = segment_mean(tokens.hidden, into, n), group.index_fill(0, best, len(left))
        centres, centre = clusters.around_peaks(mean, counts, rest, n_centres, neighbours=7)
        keep = torch.cat([best, centres]).sort().values
        survivor = torch.nn.functional.pad(select.rank(keep, n), (0, 1), value=len(keep))  # the last one: none
        joined = survivor[centre.index_copy(0, best, best)[into]]
        reduction = tokens.merge_into(keep, tuple(a + b for a, b in zip(left[::2], left[1::2])), joined)
        return replace(reduction, hidden=merge.blended(mean, centre, self.beta)[keep])

    def flops(self, tokens: Tokens, site: Site) -> int:
        if site.at == "decoder":
            return merge.products(tokens.pool_counts, tokens.pool_budget(site), tokens.hidden.shape[-1])
        return clusters.products(tokens.counts, tokens.hidden.shape[-1])
