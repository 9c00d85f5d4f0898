"""VisionZip: dominant tokens by attention, the rest merged into a few contextual ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.method import Host, Paper, Site
from foveate.ops import merge, select
from foveate.pruners import EntryPruner
from foveate.schedule import check_within, spread, survivors
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class VisionZip(EntryPruner):
    """At the tower's output keep the tokens that receive most attention, and merge the others into evenly spaced ones.

    From the paper (section 3): attention of the CLS token (without one: attention received), 54 dominant + 10 contextual
    of 576, where the CLS token is one of the 54.
    From the authors' code: scores summed over heads; the others join the target with the most similar head-mean key, and
    a target becomes itself plus the mean of its members. Ours: the targets are spaced evenly from the middle, not from
    the first token; the CLS token itself is not kept, so 54 patches are dominant where the code keeps 53 and it; survivors
    are in raster order, contextual ones at the place of their target (the code puts them after the dominant ones), and keep
    their positions; in towers with a 2x2 merger a token is the 2x2 block; counts are rounded to the nearest (the code has
    them as numbers).

    Attributes:
        contextual: share of the survivors that are merged ones.
    """

    contextual: float = 10 / 64  # share of the survivors

    usual: ClassVar[float] = 64 / 576
    paper: ClassVar[Paper] = Paper(
        "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
        "CVPR",
        2025,
        "2412.04467",
        "dvlab-research/VisionZip",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the survivors", contextual=self.contextual)

    def sites(self, host: Host) -> Sequence[Site]:
        attention = "cls_row" if host.has_cls else "received"
        return [Site.output(self.share, signals=(attention, "keys"))]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts, n_dominant, n_contextual = self._counts(tokens, site)
        attention = tokens.cls_row.sum(-1) if "cls_row" in tokens.signals else tokens.received
        dominant = select.top_k(attention, tokens.counts, n_dominant)

        n_rest = tuple(n - kept for n, kept in zip(tokens.counts, n_dominant))
        rest = select.complement(dominant, len(tokens))
        target = select.stride(n_rest, n_contextual, attention.device)
        nearest = merge.nearest_target(tokens.keys[rest].mean(1), n_rest, target, n_contextual)

        keep = torch.cat([dominant, rest[target]]).sort().values
        place = select.rank(keep, len(tokens))
        of_target = torch.nn.functional.pad(place[rest[target]], (0, 1), value=len(keep))  # the last one: no target
        return tokens.merge_into(keep, counts, place.index_copy(0, rest, of_target[nearest]), "survivor+mean")

    def _counts(self, tokens: Tokens, site: Site) -> tuple[tuple[int, ...], ...]:
        """Survivors per span, and how many of them are dominant and how many contextual."""
        counts = tokens.budget(site)
        contextual: list[int] = []
        for clip in tokens.spans.clips:
            kept = [counts[span] for span in clip]
            contextual += spread(survivors(sum(kept), self.contextual, least=0), kept, kept)
        return counts, tuple(kept - few for kept, few in zip(counts, contextual)), tuple(contextual)

    def flops(self, tokens: Tokens, site: Site) -> int:
        _, n_dominant, n_contextual = self._counts(tokens, site)
        rest = [n - kept for n, kept in zip(tokens.counts, n_dominant)]
        return merge.products(rest, n_contextual, tokens.keys.shape[-1])
