"""DUET-VLM: dominant tokens and small clusters leave the tower, and the question thins them out in the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.ops import merge, select
from foveate.ops.segments import offsets, ranges
from foveate.pruners import StagedPruner
from foveate.schedule import Schedule, check_within, spread, survivors
from foveate.signal import Signal
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class DuetVLM(StagedPruner):
    """Keep what the tower looks at, and a few clusters of the next best; drop in two stages what the question does not look at.

    From the paper: redundancy leaves in the tower, where clusters are of few tokens, so that background does not blur them, and
    what does not bear on the question in the language model. From the authors' code: 170 dominant tokens of 576 by attention of
    the CLS token, summed over heads; of the others the ``width`` times 35 with most of it are left, every ``width``-th of them,
    in the order of their attention, is a centre, and the rest joins the centre with the most similar head-mean key; a centre
    becomes itself plus the mean of these; half of all stays before layer 16 of 32, and none from layer 24 on, by the mean
    attention that the words of the question pay with that layer's norm, projections and RoPE. Ours: the CLS token is not kept
    (so 170 patches are dominant, where the code keeps it and 169); all words behind the image ask, as by default in the code
    (with spaCy installed, it can choose nouns, verbs and the like); survivors in raster order; original positions (the code
    renumbers); without a CLS token, attention received; with a 2x2 merger a token is the 2x2 block.

    Attributes:
        layers: where tokens leave: 0 is the tower's output, others are decoder layers; by default 0, 1/2 and 3/4 of the depth.
        ratios: share of the tokens present that survives at each of them; by default 205/576, 0.5 and 0.
        contextual: share of the tower's survivors that are centres of clusters.
        width: tokens of a cluster, on average.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    contextual: float = 35 / 205
    width: int = 4

    signals: ClassVar[tuple[Signal | str, ...]] = ("next_rows", "text_place")
    paper: ClassVar[Paper] = Paper(
        "DUET-VLM: Dual stage Unified Efficient Token reduction for VLM Training and Inference",
        "CVPR",
        2026,
        "2602.18846",
        "AMD-AGI/DUET-VLM",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a share of the survivors", contextual=self.contextual)
        if self.width < 1:
            raise ConfigError(f"duetvlm: width={self.width}: give the tokens of a cluster, at least 1")

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((0, 16, 24), (205 / 576, 0.5, 0.0), 32, host.layers)

    def tower_signals(self, host: Host) -> tuple[Signal | str, ...]:
        return "cls_row" if host.has_cls else "received", "keys"

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        words = (tokens.text_place >= 0).sum(1).clamp(min=1)
        return tokens.next_rows.float().sum(1) / words[tokens.sample]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if site.at == "decoder":
            return super().reduce(tokens, site)
        kept, best, pool, centres = self._counts(tokens, site)
        attention = tokens.cls_row.float().sum(-1) if "cls_row" in tokens.signals else tokens.received.float()
        order, starts = select.best_first(attention, tokens.counts), offsets(tokens.counts)[:-1]
        dominant = order[ranges(starts, best, order.device)]
        rest = order[ranges([start + n for start, n in zip(starts, best)], pool, order.device)]
        target = select.stride(pool, centres, order.device, place="first")  # of those in `rest`, best first
        nearest = merge.nearest_target(tokens.keys[rest].float().mean(1), pool, target, centres)
        keep = torch.cat([dominant, rest[target]]).sort().values
        place = select.rank(keep, len(tokens))
        joined = pad(place[rest[target]], (0, 1), value=len(keep))[nearest]
        return tokens.merge_into(keep, kept, place.index_copy(0, rest, joined), "survivor+mean")

    def _counts(self, tokens: Tokens, site: Site) -> tuple[tuple[int, ...], list[int], list[int], list[int]]:
        """Of every image or frame how many are left; dominant ones, those in clusters, and centres of these."""
        kept, centres = tokens.budget(site), list[int]()
        for clip in tokens.spans.clips:
            own = [kept[span] for span in clip]
            centres += spread(survivors(sum(own), self.contextual, least=0), own, own)
        best = [k - few for k, few in zip(kept, centres)]
        pool = [min(self.width * few, n - k) for few, n, k in zip(centres, tokens.counts, best)]
        return kept, best, pool, centres

    def flops(self, tokens: Tokens, site: Site) -> int:
        if site.at == "decoder":
            return 0
        _, _, pool, centres = self._counts(tokens, site)
        return merge.products(pool, centres, tokens.keys.shape[-1])
