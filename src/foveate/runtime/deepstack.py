"""Features that stock code adds to the visual tokens between decoder layers."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.context import DecoderPass


def add_deepstack(call: DecoderPass, layer: int, hidden: Tensor) -> Tensor:
    """What stock code adds to the visual tokens after ``layer``, for those of them that are left."""
    layout, rank, members = call.attended, call.rank, call.members
    if layout is None or rank is None or not 0 <= layer < len(call.deepstack):
        return hidden

    def rows() -> Tensor:
        place = layout.slot if layout.index is None else layout.index[layout.row, layout.slot]
        return rank[layout.row.to(rank.device), place.to(rank.device)]

    features = call.deepstack[layer]
    added = features.index_select(0, call.memo.once("deepstack", (layout,), rows).to(features.device))
    if members is not None:
        added, layout = members.features(added), members.inner
    return layout.put(hidden, layout.pick(hidden) + added.to(hidden.device, hidden.dtype))
