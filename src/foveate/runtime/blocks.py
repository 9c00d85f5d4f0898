"""What a block of the vision tower is called with: the rows present have their own mask, rotary embeddings and segments."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor, nn

from foveate.models.family import Tower
from foveate.runtime.context import TowerPass
from foveate.runtime.layout import Packed, Rows, take_rows
from foveate.runtime.masks import View, derive, kind_of
from foveate.runtime.positions import rotary_at
from foveate.runtime.signals import real_implementation


def block_arguments(
    spec: Tower, call: TowerPass, layout: Rows | Packed, block: nn.Module, hidden: Tensor, kwargs: Any
) -> Any:
    """Arguments of a block for the rows present."""
    new = dict(kwargs)
    for name, axis in spec.block_args.items():
        value = kwargs.get(name)
        if axis == "mask":
            if isinstance(layout, Rows) and (layout.valid is not None or value is not None):
                config: Any = block.get_submodule(spec.attention).config
                assert layout.index is not None
                view = View(layout.index, layout.valid)
                kind = kind_of(real_implementation(config))
                new[name] = derive(value, view, view, layout.full, 0, kind, hidden.dtype, causal=False)
            continue
        if value is None:
            continue
        new[name] = call.memo.once(name, (layout, value), partial(_for_layout, value, axis, layout, call.moved))
    return new


def _for_layout(value: Any, axis: int | str, layout: Rows | Packed, moved: bool) -> Any:
    if axis == "seqlens":
        assert isinstance(layout, Packed)
        return layout.seqlens(value)
    if axis == "rotary":
        assert isinstance(layout, Packed)
        rows = layout.rows().to(value[0].device)
        if not moved:
            return tuple(part.index_select(0, rows) for part in value)
        return rotary_at(value, rows, layout.displacement(), math.isqrt(layout.unit))
    if isinstance(value, tuple):
        return tuple(_for_layout(item, axis, layout, moved) for item in value)
    if isinstance(layout, Packed):
        return value.index_select(int(axis), layout.rows().to(value.device))
    assert layout.index is not None
    return take_rows(value, layout.index, int(axis))
