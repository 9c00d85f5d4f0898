"""New tokens behind the tokens of an image, which the stock model does not know of.

They stand right behind the last token of their span and share its place in the full sequence, so masks, rotary embeddings and
whatever else is taken by place are those of this token; `Tokens.appended` tells them apart. The slots of a layout are in the
order of the sequence, new tokens included: that is what `limit_of_new` adds to masks, which know places only. Nothing of them
is scattered back. In the tower nobody is hidden from anybody, rotary embeddings are those of where the method says that they
are, and they are gone when its blocks have run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from foveate.ops.segments import offsets
from foveate.runtime.checks import check_append
from foveate.runtime.growing import New
from foveate.runtime.layout import Rows, take_rows
from foveate.runtime.masks import Limit
from foveate.runtime.protocol import Layout
from foveate.runtime.signals.past import Past
from foveate.tokens import Tokens

if TYPE_CHECKING:
    from foveate.runtime.context import Action, DecoderPass, TowerPass

L = TypeVar("L", bound=Layout)


def append(action: Action, call: DecoderPass, tokens: Tokens, hidden: Tensor) -> Tensor:
    """One append site: ``hidden (B, P, C)`` with the tokens that the method gives, and the layout of the call with them."""
    layout = call.layout
    assert layout is not None
    assert call.complete is not None
    rows, counts = check_append(action.method, action.site, tokens, action.ask(tokens)[0]).packed()
    last, ends = _ends(call.complete)
    if call.names is not None:  # this forward may bring a part of a span, which gets its new tokens with its last one
        ended = last.tolist()
        rows = torch.cat([rows[:0], *(part for part, here in zip(rows.split(counts), ended) if here)])
        counts = tuple(n if here else 0 for n, here in zip(counts, ended))
    action.note(call.trace, tokens, says=f"{sum(counts)} tokens appended")
    if not sum(counts):
        return hidden
    spans, repeats = tokens.spans, torch.tensor(counts)
    corners = [(frame, height - 1, width - 1) for frame, (height, width) in zip(spans.frame, spans.shape)]
    coords = torch.tensor(corners).repeat_interleave(repeats, dim=0).to(ends.device, non_blocking=True)
    index = torch.tensor(spans.sizes).to(ends.device, non_blocking=True) - 1
    new = New(counts, ends[:, None], index, coords)
    call.layout, take, order = layout.grown(new)
    if call.members is not None:
        outer, _, outer_order = call.members.outer.grown(new)
        call.members = call.members.grown(call.layout, order, outer, outer_order)
    for block, x in call.tower.items():  # of which the tower knows nothing
        call.tower[block] = torch.cat([x, x.new_zeros(sum(counts), *x.shape[1:])])[order.to(x.device)]
    return take_rows(layout.beside(hidden, rows, counts), take)


def append_in_tower(
    action: Action, call: TowerPass, layout: Layout, complete: Layout, tokens: Tokens, hidden: Tensor
) -> Tensor:
    """The same in the vision tower, of the ``layout`` in force; ``complete`` is that of all tokens."""
    answer = check_append(action.method, action.site, tokens, action.ask(tokens)[0])
    rows, counts = answer.packed()
    action.note(call.trace, tokens, says=f"{sum(counts)} tokens appended")
    if not sum(counts):
        return hidden
    spans, device = tokens.spans, tokens.index.device
    middle = torch.tensor([(f, (h - 1) / 2, (w - 1) / 2) for f, (h, w) in zip(spans.frame, spans.shape)])
    coords = middle.repeat_interleave(torch.tensor(counts), dim=0).to(device, non_blocking=True)
    if answer.coords is not None:
        coords = torch.cat([coords[:, :1], answer.coords.reshape(-1, 2).to(coords)], dim=1)
    last = torch.tensor(offsets(complete.tokens.counts)[1:]).to(device, non_blocking=True) - 1
    call.layout, take, _ = layout.grown(New(counts, complete.places(last), complete.tokens.index[last], coords))
    call.seen = Past(leading=call.seen.leading)  # blocks before have left nothing of them
    return take_rows(layout.beside(hidden, rows, counts), take)


def own(layout: L) -> tuple[L, Tensor | None]:
    """Return the layout of the images' own tokens, and which rows these are; None: all. This asks the device."""
    tokens = layout.tokens
    if tokens.marks is None:
        return layout, None
    made, take = layout.reduce(tokens.keep_mask(~tokens.marks))
    return made.of_tokens(replace(made.tokens, marks=None, history=tokens.history)), take


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


def _ends(complete: Rows) -> tuple[Tensor, Tensor]:
    """For each span, whether its last token is among those of this forward, and the place of the last one that is."""
    tokens = complete.tokens
    sizes = torch.tensor(tokens.spans.sizes).to(tokens.index.device, non_blocking=True)
    none = torch.full_like(sizes, -1)
    last = none.scatter_reduce(0, tokens.segment, tokens.index, "amax") == sizes - 1
    return last, none.scatter_reduce(0, tokens.segment, complete.slot, "amax")
