"""PruneVid: what stays the same in a segment of a video is merged, then what is alike, and the question prunes all caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch.nn.functional import pad

from foveate.method import Host, Method, Paper, Site
from foveate.ops import clusters, frames, select, stills
from foveate.ops.segments import segment_sum
from foveate.pruners import StagedPruner
from foveate.schedule import COSINE, Schedule, check_within, spread
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens

ROWS = Signal("text_rows", heads=True)


@dataclass(frozen=True)
class PruneVid(StagedPruner):
    """Merge cells that stay alike over a segment, cluster what is left, and keep what a word of the question looks at most.

    From the paper and the authors' code: segments are clusters of frames, a fourth as many, by density peaks of 7 neighbours of
    mean tokens, made contiguous; a cell whose mean cosine over all pairs of frames is above ``tau`` is static and becomes its
    mean; the static tokens of a segment, and the others of each frame, become half as many, clusters around density peaks of 7
    neighbours, by plain means; before layer 11 of 32, and in the caches of the layers up to there when the prompt has ended,
    0.4 of each of these groups stay, those to which any head of any word of the question pays most in layer 10. Ours: counts of
    a video are exact, shared out by the sizes of groups, also of small ones (the code clusters those of more than 14 tokens):
    where static cells alone would leave less, the most alike merge; a cluster stands where its centre is, a static one in the
    first frame of its segment (the code: static ones first). An image is a video of one frame, as is one of unknown videos.

    Attributes:
        layers: where tokens leave: 0 is before the language model, another in the decoder; by default 0 and at 11/32.
        ratios: share of the tokens present that survives at each of them; by default 0.4 each.
        segments: ``clusters`` of frames, the default; ``none``: each frame alone, as of images.
        tau: mean cosine above which a cell is static.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    segments: Literal["clusters", "none"] | None = None
    tau: float = 0.8

    signals: ClassVar[tuple[Signal | str, ...]] = (ROWS,)
    fixed_budget: ClassVar[bool] = False  # of a frame
    paper: ClassVar[Paper] = Paper(
        "PruneVid: Visual Token Pruning for Efficient Video Large Language Models",
        "ACL Findings",
        2025,
        "2412.16117",
        "Visual-AI/PruneVid",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(COSINE, tau=self.tau)

    @property
    def temporal(self) -> bool:
        return self.segments == "clusters"

    def resolve(self, host: Host) -> Method:
        return self if self.segments else replace(self, segments="clusters" if "lm_entry" in host.frames else "none")

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((0, 11), (0.4, 0.4), 32, host.layers, first=0)

    def before(self, share: float, host: Host) -> Site:
        return Site.entry(share)

    def sites(self, host: Host) -> Sequence[Site]:
        found = list(super().sites(host))
        cuts = [site for site in found if site.at == "decoder" and site.keep < 1]
        return found + [Site.cache(i, cuts[-1].keep) for i in host.growing_caches if cuts and i < cuts[-1].layer]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.at == "cache":
            return tokens.keep_chosen(tokens.state["chosen"])
        return self._asked(tokens, site) if site.at == "decoder" else self._merged(tokens, site)

    def _merged(self, tokens: Tokens, site: Site) -> Reduction:
        n, x, counts = len(tokens), tokens.hidden, tokens.counts
        videos = [len(clip) for clip in tokens.spans.clips] if self.temporal else [1] * len(counts)
        kept = tokens.pool_budget(site) if self.temporal else tokens.budget(site)
        cuts = stills.by_clusters(x, counts, videos, 0.25, 7) if self.temporal else [[(0, 0)] for _ in counts]
        into, group, sizes = stills.merge_in_segments(x, tokens.index, counts, tokens.spans.sizes, cuts, self.tau, kept)
        left = self._shared(sizes, videos, kept)
        centres, centre, values = frames.clustered(x, counts, into, group, [*left, 0], up_to_centres=False)
        joined = pad(select.rank(centres, n), (0, 1), value=len(centres))[centre]
        tokens.state.setdefault("still", []).append(tokens.name[centres[group[centres] % 2 == 0]])
        reduction = tokens.merge_into(centres, tuple(a + b for a, b in zip(left[::2], left[1::2])), joined)
        return replace(reduction, hidden=values)

    def _asked(self, tokens: Tokens, site: Site) -> Reduction:
        counts, paid = tokens.counts, pad(tokens.signal(ROWS).float().flatten(1), (0, 1)).amax(1)  # of no word, 0
        still = torch.isin(tokens.name, torch.cat(tokens.state["still"])) if "still" in tokens.state else None
        group = 2 * tokens.segment + (1 if still is None else (~still).long())
        sizes = segment_sum(torch.ones_like(group), group, 2 * len(counts)).tolist()
        left = self._shared(sizes, [len(clip) for clip in tokens.spans.clips], tokens.pool_budget(site))
        keep = select.best_of_groups(paid, group, left)
        tokens.state.setdefault("chosen", []).append(tokens.name[keep])  # a prompt may come in chunks
        return Reduction(keep, tuple(a + b for a, b in zip(left[::2], left[1::2])))

    @staticmethod
    def _shared(sizes: list[int], videos: list[int], kept: Sequence[int]) -> list[int]:
        """Share out what is kept of each video over its groups, two of each frame, by their sizes."""
        parts = iter(torch.tensor(sizes).split([2 * n for n in videos]))
        return [few for k, part in zip(kept, parts) for few in spread(k, part.tolist(), part.tolist())]

    def flops(self, tokens: Tokens, site: Site) -> int:
        videos = [len(clip) for clip in tokens.spans.clips] if self.temporal else []
        return sum(
            clusters.products(n, tokens.hidden.shape[-1]) for n in (tokens.counts, videos) if site.at == "lm_entry"
        )
