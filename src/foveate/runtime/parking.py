"""Tokens that are set aside for a while, in the tower or in the decoder, and blocks whose attention sees them nevertheless.

In such a block only the rows present have queries, an output projection and an FFN; the parked rows, as the method says they
are now, lend keys and values. Attention is row by row in the queries, so what the rows present get is exactly what they
would get if the attention ran over all rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedSiteError
from foveate.method import Method, Site
from foveate.runtime.checks import check_restored, flops_of
from foveate.runtime.layout import take_rows
from foveate.runtime.masks import of_queries
from foveate.runtime.members import Members
from foveate.runtime.protocol import Layout
from foveate.runtime.signals.past import Past
from foveate.runtime.trace import BlockTrace, KeyTrace, SiteTrace, Trace
from foveate.tokens import Parked

if TYPE_CHECKING:
    from foveate.runtime.context import Action, DecoderPass, TowerPass


L = TypeVar("L", bound=Layout)


@dataclass(frozen=True, eq=False)
class Lot(Generic[L]):
    """Tokens that are set aside until they are restored.

    Attributes:
        method: who parked them and says what they have become.
        parked: the tokens, and which of them went on.
        outer: the layout they return to.
        kept: where the rows present stand among those of ``outer``: ``(rows,)`` in a packed tower, ``(B, P)`` in a padded
            one.
        leading: special tokens at the front of every image of a padded tower.
        seen: what blocks before had left of all tokens.
        tower: in the decoder, what the vision tower had left of them.
        members: there, who stood for whom.
    """

    method: Method
    parked: Parked
    outer: L
    kept: Tensor
    leading: int
    seen: Past
    tower: dict[Hashable, Tensor] = field(default_factory=dict)
    members: Members | None = None

    def all_rows(self, layout: Layout, hidden: Tensor, site: Site) -> Tensor:
        """Return the rows of ``outer``, as the method says they are now that the rows present are ``hidden``."""
        parked = self.parked.tokens
        tokens = replace(layout.tokens, hidden=layout.pick(hidden), state=parked.state)
        if tokens.hidden.shape[1:] != parked.hidden.shape[1:]:
            raise UnsupportedSiteError(
                f"{self.method.name()} cannot restore at {site}: tokens have {tokens.hidden.shape[-1]} channels there and had "
                f"{parked.hidden.shape[-1]} where they were parked (features of several blocks?): use one feature layer"
            )
        restored = self.method.restore(tokens, self.parked, site)
        check_restored(self.method, site, restored, parked.hidden)
        return self.outer.put(spread(hidden, self.kept, self.outer.width), restored)  # some rows are no token's

    def lend(self, trace: Trace, layout: Layout, hidden: Tensor, site: Site) -> Tensor:
        """The rows of ``outer`` for an attention on the way, after which they stay parked; ``trace`` notes its cost."""
        tokens = replace(layout.tokens, hidden=layout.pick(hidden))
        trace.signal_flops += flops_of(self.method, tokens, site)
        return self.all_rows(layout, hidden, site)

    def all_seen(self, layout: Layout, seen: Past, site: Site) -> Past:
        """What blocks have left of all tokens: those before they were parked as it was, and those since then (``seen``) as the
        method says. What was read of the tokens present says nothing of all of them, unless that attention saw them all."""

        def whole(x: Tensor) -> Tensor:
            # Special tokens may have been cut off since then.
            return self.all_rows(layout, x[..., x.shape[-2] - layout.width :, :], site)

        before, after = self.seen, Past(leading=seen.leading)
        after.readings = {i: x for i, x in seen.readings.items() if x.sees_parked} | before.readings
        for states, since, then in (
            (after.entered, seen.entered, before.entered),
            (after.left, seen.left, before.left),
        ):
            states |= {i: whole(x) for i, x in since.items() if i not in then} | then
        return after

    def without_leading(self) -> Lot[L]:
        """These tokens once the special ones at the front of images are cut off."""
        outer, kept = self.outer.without_leading(self.leading), self.kept[..., self.leading :] - self.leading
        return replace(self, outer=outer, kept=kept, leading=0)


def come_back(call: TowerPass | DecoderPass, action: Action, layout: Layout, hidden: Tensor) -> Tensor:
    """Bring back the tokens set aside, at a ``restore`` site. The hidden states ``hidden`` of those of ``layout`` are now
    those of all."""
    lot, call.lot = call.lot, None
    tokens = replace(layout.tokens, hidden=layout.pick(hidden))
    full = (layout if lot is None else lot.outer).tokens
    flops = flops_of(action.method, tokens, action.site)
    known = full.index, full.spans.shape, tokens.index
    marks = None if full.marks is None else (tokens.appended, full.marks)
    visit = SiteTrace(action.site, action.method.name(), tokens.counts, full.counts, flops, *known, marks=marks)
    call.trace.add(visit)
    if lot is None:  # nothing had to be set aside
        return hidden
    call.seen = lot.all_seen(layout, call.seen, action.site)
    return lot.all_rows(layout, hidden, action.site)


class Attending:
    """The attention of one block that sees parked rows, too.

    Args:
        rows: hidden states of all rows, ``(R, C)`` or ``(B, P', C)``.
        kept: which of them the block has, as in `Lot`.
        cu_seqlens, ends: where kernels take them: the block's own rows by attention segment (none are left out), cumulative,
            on the device and as numbers.
        fused: the projection that makes the queries makes keys and values as well.
    """

    def __init__(self, rows: Tensor, kept: Tensor, cu_seqlens: Tensor | None, ends: Sequence[int], fused: bool) -> None:
        self.rows, self.kept, self.cu_seqlens, self.ends, self.fused = rows, kept, cu_seqlens, ends, fused
        self.trace: KeyTrace | None = None
        self.alone = True  # these rows alone go on after this attention
        self._whole: Tensor | None = None  # input of the query projection
        self._segment = self._start = 0  # of the packed sequence, when the kernel is called segment by segment

    def note(self, trace: BlockTrace, rows: int, segments: Any) -> None:
        """Say in ``trace`` what this block does, which has ``rows``; ``segments`` are those of its arguments."""
        self.trace = trace.keys = KeyTrace(self.rows.shape[:-1].numel(), rows, segments)
        if self.cu_seqlens is not None:
            trace.segments = self.cu_seqlens
        else:
            self.trace.segments = [self.rows.shape[1]] * len(self.rows)

    # -- modules ----------------------------------------------------------------------------------------------------

    def own(self, x: Tensor) -> Tensor:
        """Return the block's own rows of ``x``, a tensor like ``rows``."""
        return take_rows(x, self.kept)

    def before_query(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return the rows that the query projection works on."""
        if self.fused and not is_plain(layer):  # parked rows need its keys and values, and it cannot be cut
            if self.trace is not None:
                self.trace.queries = x.shape[:-1].numel()
            return x
        self._whole = x
        return self.own(x)

    def after_query(self, layer: Any, output: Tensor) -> Tensor:
        """Its output for all rows; queries of parked rows are zeros, and are not read."""
        if self._whole is None:
            return output
        whole, self._whole = self._whole, None
        if not self.fused:
            return spread(output, self.kept, whole.shape[-2])
        width = layer.out_features // 3
        parked = others(self.kept, len(whole))
        bias = None if layer.bias is None else layer.bias[width:]
        lent = nn.functional.linear(whole[parked], layer.weight[width:], bias)
        out = output.new_zeros(len(whole), output.shape[-1]).index_copy_(0, self.kept, output)
        out[:, width:].index_copy_(0, parked, lent.to(output.dtype))
        return out

    # -- the kernel -------------------------------------------------------------------------------------------------

    def narrow(self, query: Tensor, mask: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor | None]:
        """Return the queries ``(B, H, Q, d)`` of the block's own rows, their mask, and their places for `widen`."""
        segmented = len(self.ends) > 0 and kwargs.get("cu_seq_lens_q") is None
        if self.kept.dim() == 2 and not segmented:
            if kwargs.get("cu_seq_lens_q") is not None:  # flash kernels take lengths of the images of a single row
                kwargs["cu_seq_lens_q"] = self.cu_seqlens
            if isinstance(mask, Tensor) and mask.dim() == 2:  # flash kernels align it with queries and keys alike
                return query, mask, None
            if isinstance(mask, Tensor) and mask.shape[-2] > 1:
                mask = take_rows(mask, self.kept, 2)
            elif mask is not None and not isinstance(mask, Tensor):
                mask = of_queries(mask, self.kept)
            return take_rows(query, self.kept, 2), mask, self.kept
        if not segmented:  # flash kernels take the packed tower in one call
            kwargs["cu_seq_lens_q"] = self.cu_seqlens
            place = self.kept
        else:
            a, b = self.ends[self._segment], self.ends[self._segment + 1]
            place = self.kept.flatten()[a:b] - self._start
            self._segment += 1
            self._start += query.shape[2]
        return query.index_select(2, place), mask, place[None]

    def widen(self, output: Tensor, place: Tensor | None, n: int) -> Tensor:
        """Attention ``(B, Q, H, d)`` of the block's own rows, back among ``n`` rows."""
        return output if place is None else spread(output, place, n)


def spread(x: Tensor, place: Tensor, n: int) -> Tensor:
    """``x (B, P, ...)`` at ``place (B, P)``, packed ``x (P, ...)`` at ``place (P,)``, among ``n`` rows, zeros elsewhere."""
    if place.dim() == 1:
        return x.new_zeros(n, *x.shape[1:]).index_copy_(0, place, x)
    flat = (place + torch.arange(len(place), device=place.device)[:, None] * n).flatten()
    out = x.new_zeros(len(place) * n, *x.shape[2:]).index_copy_(0, flat, x.flatten(0, 1))
    return out.view(len(place), n, *x.shape[2:])


def is_plain(layer: nn.Module) -> bool:
    """Tell whether ``weight`` and ``bias`` are all there is to it (no adapter, no quantisation, nothing offloaded)."""
    return type(layer) is nn.Linear and not hasattr(layer, "_hf_hook")


def others(kept: Tensor, n: int) -> Tensor:
    """``(n - K,)`` ascending: the rows that are not in ``kept (K,)``."""
    is_kept = torch.zeros(n, dtype=torch.bool, device=kept.device).index_fill(0, kept, True)
    return torch.argsort(is_kept.to(torch.uint8), stable=True)[: n - len(kept)]
