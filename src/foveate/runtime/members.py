"""Merged tokens that stand for all of their members, as ``positions="virtual"`` says.

The hidden states have a row for every token that is left. Attention has one for every member, at the member's own position, as
if the sequence were full; what it makes of the members of a token is averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from foveate.answers import Sight
from foveate.ops.segments import segment_sum
from foveate.runtime.layout import Rows, starts, take_rows
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True, eq=False)
class Members:
    """The members that each merged token stands for.

    Attributes:
        inner: the tokens that are left, ``P`` in a row.
        outer: all that they stand for, ``M`` in a row: what attention sees.
        group: ``(N',)`` which of the ``N`` visual tokens of ``inner`` each one of ``outer`` is part of; ``N``: of none.
    """

    inner: Rows
    outer: Rows
    group: Tensor

    @classmethod
    def each_alone(cls, layout: Rows) -> Members:
        """The members of tokens none of which has merged: each token is its own."""
        alone = torch.arange(len(layout.tokens), device=layout.row.device)
        return cls(layout, replace(layout, place=None), alone)

    def after(self, inner: Rows, joined: Tensor) -> Members | None:
        """The members of tokens after some have joined others; None: each token is its own.

        ``joined (N,)`` says which of the new ``inner`` each has become part of. How many members that leaves depends on the
        data, so this asks the device once.
        """
        k = len(inner.tokens)
        group = joined[self.group]
        stays = group < k
        per_span = torch.bincount(self.outer.tokens.segment[stays], minlength=len(self.outer.tokens.counts)).tolist()
        counts, outer = tuple(int(n) for n in per_span), self.outer
        if sum(counts) < len(group):
            keep = stays.nonzero().flatten()
            outer, _ = outer.reduce(Reduction(keep, counts))
            group = group[keep]
        return None if sum(counts) == k else Members(inner, outer, group)

    def grown(self, inner: Rows, order: Tensor, outer: Rows, outer_order: Tensor) -> Members:
        """These members, and new tokens, each of which is its own member.

        Args:
            inner, outer: the layouts with them.
            order, outer_order: which of the old and then the new tokens each visual token there is.
        """
        old, n, device = len(self.inner.tokens), len(inner.tokens), order.device
        now = torch.empty_like(order).index_copy(0, order, torch.arange(n, device=device))
        return Members(inner, outer, now[torch.cat([self.group, torch.arange(old, n, device=device)])][outer_order])

    def seeing(self, sight: Sight | None) -> Members:
        """These members, each of which may see what the ``sight`` says of its token; None: all."""
        own = None if sight is None else replace(sight, group=sight.group[self.group])
        return replace(self, outer=replace(self.outer, sight=own))

    @cached_property
    def place(self) -> Tensor:
        """``(B, M)`` the row of ``inner`` that each of ``outer`` is a copy of; ``P``: none, it is padding."""
        inner, outer = self.inner, self.outer
        batch, device = len(outer.lengths), outer.row.device
        index = torch.arange(outer.width, device=device).expand(batch, -1) if outer.index is None else outer.index
        if inner.index is None:
            own = torch.arange(inner.width, device=device).expand(batch, -1)
        else:
            here = torch.arange(inner.width, device=device).expand(batch, -1)
            here = here if inner.valid is None else torch.where(inner.valid, here, inner.width)
            own = torch.full((batch, inner.full), inner.width, device=device).scatter(1, inner.index, here)
        slots = torch.nn.functional.pad(inner.slot, (0, 1), value=inner.width)
        place = own.gather(1, index).index_put((outer.row, outer.slot), slots[self.group])
        return place if outer.valid is None else torch.where(outer.valid, place, inner.width)

    @cached_property
    def _source(self) -> Tensor:
        return self.place.clamp(max=self.inner.width - 1)

    @cached_property
    def _count(self) -> Tensor:
        ones = torch.ones_like(self.place, dtype=torch.float32)
        count = ones.new_zeros(len(ones), self.inner.width + 1).scatter_add(1, self.place, ones)
        return count[:, :-1, None].clamp(min=1)

    def spread(self, x: Tensor) -> Tensor:
        """Copy rows ``(B, P, d)`` of tokens to their members, ``(B, M, d)``."""
        return take_rows(x, self._source)

    def total(self, x: Tensor) -> Tensor:
        """Sum rows ``(B, M, ...)`` of members to rows ``(B, P, ...)`` of their tokens, in single precision at least."""
        batch, width = len(x), self.inner.width + 1
        flat = self.place.to(x.device) + torch.arange(batch, device=x.device)[:, None] * width
        exact = torch.promote_types(x.dtype, torch.float32)
        total = x.new_zeros(batch * width, *x.shape[2:], dtype=exact)
        total = total.index_add(0, flat.flatten(), x.flatten(0, 1).to(exact))
        return total.view(batch, width, *x.shape[2:])[:, :-1]

    def mean(self, x: Tensor) -> Tensor:
        """Average rows ``(B, M, d)`` of members to rows ``(B, P, d)`` of their tokens."""
        total = self.total(x)
        return (total / self._count.to(total)).to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """Average features ``(N', C)`` of visual members to ``(N, C)``, over those that have some (no row of NaN)."""
        there = ~x.isnan().all(-1)
        total = segment_sum(torch.where(there[:, None], x, x.new_zeros(())), self.group, len(self.inner.tokens))
        return total / segment_sum(there.to(x.dtype), self.group, len(self.inner.tokens)).clamp(min=1)[:, None]


def joined(keep: Tensor, n: int, groups: Callable[[], Tensor] | None) -> Tensor:
    """Say for each of ``n`` tokens which of the ``K`` survivors ``keep`` it has become part of, ``(n,)``; ``K``: none."""
    if groups is not None:
        return groups()
    alone = torch.arange(len(keep), device=keep.device)
    return torch.full((n,), len(keep), device=keep.device).index_copy(0, keep, alone)


def moved(home: Tensor | None, tokens: Tokens, reduction: Reduction) -> Tensor:
    """Say for each place of the grids of ``tokens``, in raster order, which place it is part of now, ``(U,)``; -1: of none.

    ``home`` says that before the reduction; None: each place is its own.
    """
    before = starts(tokens.spans, tokens.index.device)[tokens.segment] + tokens.index
    after = before[reduction.keep]
    home = torch.arange(sum(tokens.spans.sizes), device=before.device) if home is None else home
    to = torch.full_like(home, -1)
    if reduction.groups is None:
        to = to.index_copy(0, after, after)
    else:
        none = after.new_full((1,), -1)
        to = to.index_copy(0, before, torch.cat([after, none])[reduction.groups()])
    return torch.where(home < 0, -1, to[home.clamp(min=0)])
