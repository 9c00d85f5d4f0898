"""A choice of visual tokens that lasts over decoding steps until attention turns, and follows the rows that beams choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.ops import select
from foveate.ops.segments import offsets, ranges, segment_cosine, segment_ids
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True, eq=False)
class Lasting:
    """The tokens that attention chose, in an image or video those that get most of it.

    Attributes:
        attention: ``(N,)`` what the last step gave each token.
        keep: ``(K,)`` indices of the chosen ones, ascending.
        counts: how many are chosen of each span.
        rows: the batch row of each span.
        sizes: how many tokens each span has.
    """

    attention: Tensor
    keep: Tensor
    counts: tuple[int, ...]
    rows: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def after(
        cls, last: Lasting | None, tokens: Tokens, attention: Tensor, kept: tuple[int, ...], threshold: float
    ) -> Lasting:
        """Choose ``kept`` tokens of each pool (image, or video) by ``attention (N,)``.

        The ``last`` choice stays in pools where the cosine between its attention and this one is ``threshold`` or more.
        """
        pools = tokens.pool_counts
        known = last if last is not None and last.attention.shape == attention.shape else None
        turned = None if known is None else segment_cosine(known.attention, attention, pools) < threshold
        if known is not None and turned is not None:
            if turned.is_cpu and not turned.any():  # (another device would have to be waited for)
                return replace(known, attention=attention)
            keep = select.top_k(attention, pools, kept)
            keep = torch.where(turned[segment_ids(kept, keep.device)], keep, known.keep)
        else:
            keep = select.top_k(attention, pools, kept)
        chosen = tokens.keep_pooled(keep, kept)
        return cls(attention, keep, chosen.counts, tokens.spans.row, tokens.counts)

    @property
    def reduction(self) -> Reduction:
        """The answer of a method that keeps the chosen tokens."""
        return Reduction(self.keep, self.counts)

    def of_rows(self, rows: Sequence[int]) -> Lasting:
        """Return the choice for batch rows that were these, one after another, with repeats or without some."""
        spans = [(new, s) for new, old in enumerate(rows) for s, row in enumerate(self.rows) if row == old]
        start, sizes = offsets(self.sizes), tuple(self.sizes[s] for _, s in spans)
        picked = ranges([start[s] for _, s in spans], sizes, self.keep.device)
        stays = torch.zeros_like(self.attention, dtype=torch.bool).index_fill(0, self.keep, True)[picked]
        counts = tuple(self.counts[s] for _, s in spans)
        keep = stays.sort(descending=True, stable=True).indices[: sum(counts)]
        return Lasting(self.attention[picked], keep, counts, tuple(new for new, _ in spans), sizes)
