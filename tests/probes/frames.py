"""Still frames: as the outer merging of HoliTom (arXiv 2505.21334) and FlashVID do, a video is merged along time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from foveate import Host, Method, Reduction, Site, Tokens
from foveate.ops import segments
from foveate.ops.merge import Rule


@dataclass(frozen=True)
class Still(Method):
    """Every cell of a video is merged over its frames into the first one; the other frames are left empty.

    Attributes:
        at, layer: where.
        rule: see `foveate.ops.merge.Rule`.
    """

    at: Literal["tower", "tower_output", "lm_entry", "decoder"] = "tower_output"
    layer: int = 0
    rule: Rule = "sizes"

    temporal: ClassVar[bool] = True

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site(self.at, self.layer)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        keep: list[torch.Tensor] = []
        group: list[torch.Tensor] = []
        counts = [0] * len(tokens.counts)
        start = segments.offsets(tokens.counts)
        for first, *others in tokens.spans.clips:  # a probe: real methods have no loop here
            cells = tokens.index[start[first] : start[first + 1]]
            counts[first] = len(cells)
            place = torch.full((tokens.spans.sizes[first],), -1).index_copy(0, cells, torch.arange(len(cells)))
            for frame in (first, *others):
                group.append(sum(map(len, keep)) + place[tokens.index[start[frame] : start[frame + 1]]])
            keep.append(torch.arange(start[first], start[first + 1]))
        return tokens.merge_into(torch.cat(keep), tuple(counts), torch.cat(group), self.rule)
