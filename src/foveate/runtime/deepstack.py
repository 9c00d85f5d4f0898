"""Features that stock code adds to the visual tokens between decoder layers."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from foveate.runtime.context import DecoderPass
from foveate.runtime.layout import Rows


def add_deepstack(call: DecoderPass, layer: int, hidden: Tensor) -> Tensor:
    """Return what stock code adds to the visual tokens after ``layer``, for those of them that are left."""
    seen, layout, rank = call.attended, call.layout, call.rank
    if seen is None or layout is None or rank is None or not 0 <= layer < len(call.deepstack):
        return hidden
    features = call.deepstack[layer]
    rows = call.memo.once("deepstack", (seen,), partial(_rows, seen, rank))
    added = features.index_select(0, rows.to(features.device))
    if seen.tokens.marks is not None:  # appended tokens are of no image's rows
        added = added.masked_fill(seen.tokens.marks[:, None].to(added.device), 0.0)
    if call.members is not None:
        added = call.members.features(added)
    return layout.put(hidden, layout.pick(hidden) + added.to(hidden.device, hidden.dtype))


def _rows(layout: Rows, rank: Tensor) -> Tensor:
    """``(N,)`` which of the features each visual token has."""
    place = layout.slot if layout.index is None else layout.index[layout.row, layout.slot]
    return rank[layout.row.to(rank.device), place.to(rank.device)]
