"""New tokens in a layout: where they come among the others, and which row of hidden states each row then is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.ops.segments import segment_ids
from foveate.tokens import Tokens

if TYPE_CHECKING:
    from foveate.runtime.layout import Rows


@dataclass(frozen=True, eq=False)
class New:
    """New tokens behind those of each span.

    Attributes:
        counts: how many each span gets.
        place: ``(S, unit)`` whose places in the full sequence the rows of a new token share: those of the last token of its
            span (of a packed sequence, whose places are tokens', ``(S, 1)``).
        index: ``(S,)`` raster index of that token.
        coords: ``(M, 3)`` where the new tokens are.
        bias: ``(M,)`` what is added to the attention logits of their keys, or None: nothing is.
    """

    counts: tuple[int, ...]
    place: Tensor
    index: Tensor
    coords: Tensor
    bias: Tensor | None = None

    @property
    def span(self) -> Tensor:
        """``(M,)`` of each new token."""
        return segment_ids(self.counts, self.place.device)

    def order(self, tokens: Tokens) -> Tensor:
        """``(N',)`` which of the old and then the new tokens each one is: they are packed by span, the new ones behind."""
        return torch.cat([2 * tokens.segment, 2 * self.span + 1]).argsort(stable=True)

    def among(self, tokens: Tokens, order: Tensor) -> Tokens:
        """All tokens."""
        new = torch.ones_like(self.span)

        def packed(x: Tensor, values: Tensor) -> Tensor:
            return torch.cat([x, values.to(x)])[order]

        return replace(
            tokens,
            counts=tuple(n + m for n, m in zip(tokens.counts, self.counts)),
            index=packed(tokens.index, self.index[self.span]),
            sizes=packed(tokens.sizes, new),
            coords=packed(tokens.coords, self.coords),
            marks=packed(tokens.appended, new.bool()),
        )


def grown(layout: Rows, new: New) -> tuple[Rows, Tensor, Tensor]:
    """Return the layout of a padded batch with new tokens.

    ``take (B, P')`` says for each of its slots the one before, or ``P`` and the column of the new row among those of its
    batch row (`columns`); ``order (N',)`` which of the old and then the new tokens each of its tokens is.
    """
    device, width, unit = layout.row.device, layout.width, layout.unit
    rows, cols = columns(layout, new.counts)
    row, column = torch.tensor([rows, cols]).to(device, non_blocking=True)
    place, slot = new.place[new.span].flatten(), column + width
    added = Counter(rows)
    lengths = [n + added[r] for r, n in enumerate(layout.lengths)]
    batch, room, new_width = len(lengths), max(cols) + 1, max(1, *lengths)
    index = torch.arange(width, device=device).expand(batch, -1) if layout.index is None else layout.index
    valid = torch.ones_like(index, dtype=torch.bool) if layout.valid is None else layout.valid
    # Behind which slot each comes: the last one that is no later than the last token of its span. -1: before all.
    last = new.place.amax(1)[new.span].repeat_interleave(unit)
    old = torch.arange(width, device=device)
    behind = torch.where(valid[row] & (index[row] <= last[:, None]), old, -1).amax(1)

    def with_new(x: Tensor, values: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(batch, room)], dim=1).index_put((row, slot), values)

    order = with_new(2 * old.expand(batch, -1), 2 * behind + 1).argsort(dim=1, stable=True)
    stays = with_new(valid, torch.ones_like(row, dtype=torch.bool))
    shown, right = stays.gather(1, order), layout.align == "right"
    order = order.gather(1, (shown if right else ~shown).to(torch.uint8).argsort(dim=1, stable=True))
    now = torch.empty_like(order).scatter_(1, order, torch.arange(width + room, device=device).expand_as(order))
    now = now - (width + room - new_width if right else 0)
    take = order[:, order.shape[1] - new_width :] if right else order[:, :new_width]
    packing = new.order(layout.tokens)
    by_row = (packing[:, None] * unit + torch.arange(unit, device=device)).flatten()
    made = replace(
        layout,
        width=new_width,
        lengths=tuple(lengths),
        tokens=new.among(layout.tokens, packing),
        row=torch.cat([layout.row, row])[by_row],
        slot=torch.cat([now[layout.row, layout.slot], now[row, slot]])[by_row],
        index=with_new(index, place).gather(1, take),
        valid=None if min(lengths) == new_width else stays.gather(1, take),
        place=None if layout.place is None else torch.cat([layout.place, place])[packing],
        bias=_bias(layout, new, packing),
    )
    return made, take, packing


def _bias(layout: Rows, new: New, packing: Tensor) -> Tensor | None:
    """``(N',)`` what is added to the attention logits of each token's key."""
    if layout.bias is None and new.bias is None:
        return None
    like = new.bias if layout.bias is None else layout.bias
    assert like is not None
    old, added = (
        like.new_zeros(n) if each is None else each
        for each, n in ((layout.bias, len(layout.tokens)), (new.bias, len(new.span)))
    )
    return torch.cat([old, added.to(old)])[packing]


def columns(layout: Rows, counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the batch row of every new row, and its rank among those of that one."""
    rows: list[int] = []
    cols: list[int] = []
    given = [0] * len(layout.lengths)
    for span_row, n in zip(layout.tokens.spans.row, counts):
        row, n = span_row if len(layout.lengths) > 1 else 0, n * layout.unit
        rows += [row] * n
        cols += range(given[row], given[row] + n)
        given[row] += n
    return rows, cols
