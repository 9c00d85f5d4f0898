"""New tokens behind the tokens of an image, which the stock model does not know of.

They stand right behind the last token of their span and share its place in the full sequence, so masks, rotary embeddings and
whatever else is taken by place are those of this token; `Tokens.appended` tells them apart. The slots of a layout are in the
order of the sequence, new tokens included: that is what `limit_of_new` adds to masks, which know places only. Nothing of them
is scattered back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.ops.segments import segment_ids
from foveate.runtime.checks import check_append
from foveate.runtime.layout import Rows, take_rows
from foveate.runtime.masks import Limit
from foveate.tokens import Tokens

if TYPE_CHECKING:
    from foveate.runtime.context import Action, DecoderPass


def append(action: Action, call: DecoderPass, tokens: Tokens, hidden: Tensor) -> Tensor:
    """One append site: ``hidden (B, P, C)`` with the tokens that the method gives, and the layout of the call with them."""
    layout = call.layout
    assert layout is not None
    assert call.complete is not None
    new, counts = check_append(action.method, action.site, tokens, action.ask(tokens)[0]).packed()
    last, ends = _ends(call.complete)
    if call.names is not None:  # this forward may bring a part of a span, which gets its new tokens with its last one
        ended = last.tolist()
        new = torch.cat([new[:0], *(part for part, here in zip(new.split(counts), ended) if here)])
        counts = tuple(n if here else 0 for n, here in zip(counts, ended))
    action.note(call.trace, tokens, says=f"{sum(counts)} tokens appended")
    if not sum(counts):
        return hidden
    row, column = _columns(layout, counts)
    room = hidden.new_zeros(len(hidden), max(column) + 1, hidden.shape[-1])
    at = torch.tensor([row, column]).to(hidden.device, non_blocking=True)
    room = room.index_put((at[0], at[1]), new.to(room))
    call.layout, take, order = grown(layout, ends, counts)
    if call.members is not None:
        outer, _, outer_order = grown(call.members.outer, ends, counts)
        call.members = call.members.grown(call.layout, order, outer, outer_order)
    for block, x in call.tower.items():  # of which the tower knows nothing
        call.tower[block] = torch.cat([x, x.new_zeros(sum(counts), *x.shape[1:])])[order.to(x.device)]
    return take_rows(torch.cat([hidden, room], dim=1), take)


def grown(layout: Rows, ends: Tensor, counts: Sequence[int]) -> tuple[Rows, Tensor, Tensor]:
    """The layout with new tokens.

    ``take (B, P')`` says for each of its slots the one before, or ``P`` and the column of the new token among those of its
    row; ``order (N',)`` which of the old and then the new tokens each of its tokens is.

    Args:
        ends: ``(S,)`` the place of the full sequence behind which the new tokens of each span come.
        counts: how many these are.
    """
    tokens, device, width = layout.tokens, layout.row.device, layout.width
    rows, columns = _columns(layout, counts)
    row, column = torch.tensor([rows, columns]).to(device, non_blocking=True)
    span = segment_ids(counts, device)
    place, slot = ends[span], column + width
    added = Counter(rows)
    lengths = [n + added[r] for r, n in enumerate(layout.lengths)]
    batch, room, new_width = len(lengths), max(columns) + 1, max(1, *lengths)
    index = torch.arange(width, device=device).expand(batch, -1) if layout.index is None else layout.index
    valid = torch.ones_like(index, dtype=torch.bool) if layout.valid is None else layout.valid
    # Behind which slot each comes: the last one that is no later than its place. -1: before all.
    old = torch.arange(width, device=device)
    behind = torch.where(valid[row] & (index[row] <= place[:, None]), old, -1).amax(1)

    def with_new(x: Tensor, values: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(batch, room)], dim=1).index_put((row, slot), values)

    order = with_new(2 * old.expand(batch, -1), 2 * behind + 1).argsort(dim=1, stable=True)
    stays = with_new(valid, torch.ones_like(row, dtype=torch.bool))
    order = order.gather(1, stays.gather(1, order).to(torch.uint8).argsort(dim=1, stable=True))
    now = torch.empty_like(order).scatter_(1, order, torch.arange(width + room, device=device).expand_as(order))
    now = now - (width + room - new_width)
    take = order[:, order.shape[1] - new_width :]
    # Tokens are packed by span, the new ones of each behind its others.
    perm = torch.cat([2 * tokens.segment, 2 * span + 1]).argsort(stable=True)

    def packed(x: Tensor, values: Tensor) -> Tensor:
        return torch.cat([x, values.to(x)])[perm]

    last = torch.tensor([(h - 1, w - 1) for h, w in tokens.spans.shape]).to(device, non_blocking=True)[span]
    frame = torch.tensor(tokens.spans.frame).to(device, non_blocking=True)[span]
    sizes = torch.tensor(tokens.spans.sizes).to(device, non_blocking=True)[span]
    tokens = replace(
        tokens,
        counts=tuple(n + m for n, m in zip(tokens.counts, counts)),
        index=packed(tokens.index, sizes - 1),
        sizes=packed(tokens.sizes, torch.ones_like(span)),
        coords=packed(tokens.coords, torch.cat([frame[:, None], last], dim=1)),
        marks=packed(tokens.appended, torch.ones_like(span, dtype=torch.bool)),
    )
    made = replace(
        layout,
        width=new_width,
        lengths=tuple(lengths),
        tokens=tokens,
        row=packed(layout.row, row),
        slot=packed(now[layout.row, layout.slot], now[row, slot]),
        index=with_new(index, place).gather(1, take),
        valid=None if min(lengths) == new_width else stays.gather(1, take),
        place=None if layout.place is None else packed(layout.place, place),
    )
    return made, take, perm


def limit_of_new(layout: Rows, queries: int, keys: int) -> Limit:
    """New tokens see what stands before them, and are seen by what stands behind them.

    Args:
        layout: of the ``queries``, which are its last ones, and of the last ones of the ``keys``.
    """
    is_new = layout.appended()
    past, cut = keys - layout.width, layout.width - queries

    def limit(b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        i, j = i + cut, j - past
        new_key = is_new[b, j.clamp(min=0)] & (j >= 0)
        return (j <= i) | ~(is_new[b, i] | new_key)

    return limit


def _columns(layout: Rows, counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The row of every new token, and its rank among those of that row."""
    rows: list[int] = []
    columns: list[int] = []
    given = [0] * len(layout.lengths)
    for span_row, n in zip(layout.tokens.spans.row, counts):
        row = span_row if len(layout.lengths) > 1 else 0
        rows += [row] * n
        columns += range(given[row], given[row] + n)
        given[row] += n
    return rows, columns


def _ends(complete: Rows) -> tuple[Tensor, Tensor]:
    """For each span, whether its last token is among those of this forward, and the place of the last one that is."""
    tokens = complete.tokens
    sizes = torch.tensor(tokens.spans.sizes).to(tokens.index.device, non_blocking=True)
    none = torch.full_like(sizes, -1)
    last = none.scatter_reduce(0, tokens.segment, tokens.index, "amax") == sizes - 1
    return last, none.scatter_reduce(0, tokens.segment, complete.slot, "amax")
