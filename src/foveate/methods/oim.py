"""OIM: LUVC's Orthogonal Iterative Merger, inside the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import ClassVar, Literal

import torch

from foveate.errors import ConfigError
from foveate.method import Host, Paper, Site
from foveate.methods.spu import SPU
from foveate.ops import grid, merge
from foveate.ops.segments import segment_sum
from foveate.pruners import TowerReducer
from foveate.tokens import Reduction, Tokens

Pass = tuple[int, Literal["width", "height"], float]
SIGNALS: dict[str, tuple[str, ...]] = {"keys": ("keys",), "hidden": ()}


@dataclass(frozen=True)
class OIM(TowerReducer):
    """Merge neighbours along the rows of every image, as many in each, then along its columns: a smaller rectangle.

    This is the first half of `LUVC`. From what is published: iterative, training-free merging in the vision encoder, one
    spatial axis after the other. No code, block, ratio or similarity is published, so these are ours: odd tokens join the
    nearer of their two neighbours, and those most alike go first (as in CubistMerge, arXiv 2509.21764), by cosine, to a
    size-weighted mean. In towers with a 2x2 patch merger a token is that block, merged patch by patch. The new rectangle
    takes evenly spaced rows and columns of the old one, so windows lose alike; each token's position is the centroid of its
    members, in the tower and in the language model, and ``positions="renumber"`` (or ``native``) numbers the rectangle as a
    smaller image. Frames of a video are images. Lines are whole: the second pass leaves the rows that come nearest to
    ``keep``; 1 x 7 become 5 at 0.5.

    Attributes:
        passes: where and how: (block, axis, share kept of each line), from the first pass to the last. Of ``n`` tokens on a
            line ``round(share * n)`` stay, so a line of one token is never shortened; ``keep`` makes all passes alike. By
            default one along the width and one along the height at three quarters of the blocks, which together leave
            ``keep`` (0.7), the second making up for the rounding of the first.
        similarity: of ``hidden`` states, or of the head-mean ``keys`` of the block before.
        weighted: mean by size, else the plain mean of the two or three that merge.
        shared: all lines of an image make the same choice, by their mean similarity.
    """

    passes: tuple[Pass, ...] | None = None
    similarity: Literal["hidden", "keys"] = "hidden"
    weighted: bool = True
    shared: bool = False

    paper: ClassVar[Paper] = SPU.paper

    usual: ClassVar[float] = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.passes is None:
            return
        if not all(0.5 <= share <= 1 for _, _, share in self.passes):
            raise ConfigError("passes: each keeps 0.5 to 1 of every line; for less, add another pass")
        blocks = [0, *(block for block, _, _ in self.passes)]
        if blocks != sorted(blocks):
            raise ConfigError(f"passes: list them from the first block (0) to the last, not as {blocks[1:]}")

    def _passes(self, late: int) -> list[Pass]:
        if self.passes is None:
            return [(late, "width", self.share**0.5), (late, "height", self.share**0.5)]
        each = None if self.keep is None else self.keep ** (1 / len(self.passes))
        return [(block, axis, share if each is None else each) for block, axis, share in self.passes]

    def blocks(self, host: Host) -> Sequence[Site]:
        passes = self._passes(host.blocks * 3 // 4)
        shares = {block: prod(share for at, _, share in passes if at == block) for block, _, _ in passes}
        return [Site.tower(b, share, signals=SIGNALS[self.similarity]) for b, share in shares.items()]

    def least(self, host: Host) -> float:
        return 0.5 ** (2 if self.passes is None else len(self.passes))

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        passes = self._passes(site.layer)
        shapes = tokens.spans.shape
        for _, axis, share in (p for p in passes if p[0] < site.layer):
            shapes = grid.shorter(shapes, axis, share)
        if tokens.counts != tuple(height * width for height, width in shapes):
            raise ConfigError(
                f"{self.name()} at {site} needs images whose tokens fill a rectangle, but other methods have changed them: "
                "leave them out, or use methods for pixels and the language model beside it"
            )
        # Packed order may go by windows; from here to the end everything is in raster order of the present rectangles.
        order = (tokens.segment * max(tokens.spans.sizes, default=1) + tokens.index).argsort()
        hidden, sizes, coords = tokens.hidden[order], tokens.sizes[order], tokens.coords[order]
        features = tokens.keys[order].mean(1) if self.similarity == "keys" else hidden
        place = order
        joined: list[torch.Tensor] = []
        for _, axis, share in (p for p in passes if p[0] == site.layer):
            small = grid.shorter(shapes, axis, share)
            if self.passes is None and axis == "height":
                small = grid.filled(shapes, tokens.spans.shape, self.share)
            if small == shapes:
                continue
            n = sum(height * width for height, width in small)
            group = grid.merge_groups(features, shapes, small, axis, self.shared)
            weight = sizes if self.weighted else torch.ones_like(sizes)
            features, hidden, coords = (merge.weighted_mean(x, weight, group, n) for x in (features, hidden, coords))
            sizes = segment_sum(sizes, group, n)
            place = place[grid.thin(shapes, small).to(place.device, non_blocking=True)]
            joined.append(group)
            shapes = small
        keep, rank = place.sort()
        groups = partial(merge.chained, order, joined, rank) if joined else None
        counts = tuple(h * w for h, w in shapes)
        return Reduction(keep, counts, hidden[rank], sizes[rank], coords[rank], groups=groups)
