"""New tokens behind the tokens of an image, which the stock model does not know of.

They stand right behind the last token of their span and share its place in the full sequence, so masks, rotary embeddings and
whatever else is taken by place are those of this token; `Tokens.appended` tells them apart. The slots of a layout are in the
order of the sequence, new tokens included: that is what `limit_of_new` adds to masks, which know places only. Nothing of them
is scattered back. In the tower nobody is hidden from anybody, rotary embeddings are those of where the method says that they
are, and they are gone when its blocks have run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from foveate.answers import Append
from foveate.errors import InputError
from foveate.ops.segments import offsets
from foveate.runtime.checks import check_append, flops_of
from foveate.runtime.growing import New
from foveate.runtime.layout import Rows, take_rows
from foveate.runtime.masks import Limit
from foveate.runtime.protocol import Layout
from foveate.runtime.recalling import recalled, recalls
from foveate.runtime.remembering import complete
from foveate.runtime.signals.past import Past
from foveate.runtime.trace import visit_of
from foveate.tokens import Spans, Tokens

if TYPE_CHECKING:
    from foveate.runtime.context import Action, DecoderPass, TowerPass

L = TypeVar("L", bound=Layout)


def append(action: Action, call: DecoderPass, tokens: Tokens, hidden: Tensor) -> Tensor:
    """One append site: ``hidden (B, P, C)`` with the tokens that the method gives, or that a memory has of them, and the layout
    of the call with them."""
    layout = call.layout
    assert layout is not None
    assert call.complete is not None
    last, ends = _ends(call.complete)
    ended = [True] * len(tokens.counts) if call.names is None else last.tolist()
    bias: Tensor | None = None
    if recalls(call):
        (rows, counts), flops = recalled(call, ended, hidden), 0
    else:
        whole = tokens if call.names is None else _whole(action, call, tokens, ended)
        if not whole.counts:
            return hidden
        answer = check_append(action.method, action.site, whole, action.ask(whole)[0]).chosen()
        rows, counts, bias = _of_spans(answer, whole.spans, tokens.spans)
        flops = flops_of(action.method, whole, action.site)
    says = f"{sum(counts)} tokens {'recalled' if recalls(call) else 'appended'}"
    call.trace.add(visit_of(action.site, action.method.name(), flops, tokens, says=says))
    if not sum(counts):
        return hidden
    spans, repeats = tokens.spans, torch.tensor(counts)
    corners = [(frame, height - 1, width - 1) for frame, (height, width) in zip(spans.frame, spans.shape)]
    coords = torch.tensor(corners).repeat_interleave(repeats, dim=0).to(ends.device, non_blocking=True)
    index = torch.tensor(spans.sizes).to(ends.device, non_blocking=True) - 1
    new = New(counts, ends[:, None], index, coords, bias)
    call.layout, take, order = layout.grown(new)
    if call.members is not None:
        outer, _, outer_order = call.members.outer.grown(new)
        call.members = call.members.grown(call.layout, order, outer, outer_order)
    for block, x in call.tower.items():  # of which the tower knows nothing
        call.tower[block] = torch.cat([x, x.new_zeros(sum(counts), *x.shape[1:])])[order.to(x.device)]
    return take_rows(layout.beside(hidden, rows, counts), take)


def _whole(action: Action, call: DecoderPass, tokens: Tokens, ended: Sequence[bool]) -> Tokens:
    """The tokens of those images and frames that end in this chunk of a prompt, with what earlier ones have brought of them."""
    waiting, given = call.states.appending.get(action.order, (None, {}))
    ends = {key for key, here in zip(zip(tokens.spans.row, tokens.spans.number), ended) if here}
    found, still = complete(waiting, tokens, lambda spans: [key in ends for key in zip(spans.row, spans.number)])
    if action.site.signals and found is not tokens:
        asked = ", ".join(map(str, action.site.asked))
        raise InputError(
            f"{action.method.name()} wants {asked} of whole images at {action.site}, and this prompt comes in chunks that cut "
            "one: use prefill_chunk_size=None"
        )
    clips = list(zip(found.spans.row, found.spans.clip))
    seen, given = tuple(given.get(clip, 0) for clip in clips), dict(given)
    for clip, n in zip(clips, found.counts):
        given[clip] = given.get(clip, 0) + n
    call.states.appending[action.order] = still, given
    return replace(found, seen=seen, total=(), state=tokens.state)


def _of_spans(answer: Append, whole: Spans, here: Spans) -> tuple[Tensor, tuple[int, ...], Tensor | None]:
    """New tokens of the spans ``whole``, how many each span has that is ``here``, and what is added to the logits of their
    keys."""
    rows, counts = answer.packed()
    if whole == here:
        return rows, counts, answer.bias
    place = {key: s for s, key in enumerate(zip(whole.row, whole.number))}
    order = [place.get(key) for key in zip(here.row, here.number)]
    take = [s for s in order if s is not None]

    def taken(x: Tensor) -> Tensor:
        parts = x.split(list(counts))
        return torch.cat([x[:0], *(parts[s] for s in take)])

    bias = None if answer.bias is None else taken(answer.bias)
    return taken(rows), tuple(0 if s is None else counts[s] for s in order), bias


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


def own_rows(call: TowerPass, hidden: Tensor) -> Tensor:
    """Those of the images' own tokens, which alone go on from a tower; new ones are kept for whoever asks."""
    before = call.layout
    if before is None:
        return hidden
    call.layout, take = own(before)
    if take is None:
        return hidden
    call.seen.appended = before.pick(hidden)[before.tokens.appended]
    call.seen.narrow(take, before.width)
    return take_rows(hidden, take)


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
