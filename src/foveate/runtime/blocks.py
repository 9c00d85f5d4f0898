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
    for name, axis in (*spec.block_args.items(), *spec.attention_args.items()):
        value = kwargs.get(name)
        if axis == "mask":
            if isinstance(layout, Rows) and (layout.valid is not None or value is not None):
                config: Any = block.get_submodule(spec.attention).config
                assert layout.index is not None
                view = View(layout.index, layout.valid)
                kind = kind_of(real_implementation(config))
                mask = derive(value, view, view, layout.full, 0, kind, hidden.dtype, causal=False)
                if name in spec.attention_args:
                    call.masks[name] = mask
                else:
                    new[name] = mask
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
        if moved:
            return rotary_at(value, rows, layout.displacement(), math.isqrt(layout.unit))
        if isinstance(value, Tensor):
            return value.index_select(0, rows)
        return tuple(part.index_select(0, rows) for part in value)
    if isinstance(value, tuple):
        return tuple(_for_layout(item, axis, layout, moved) for item in value)
    if isinstance(layout, Packed):
        return value.index_select(int(axis), layout.rows().to(value.device))
    assert layout.index is not None
    return take_rows(value, layout.index, int(axis))


def key_bias(layout: Rows | Packed | None, hidden: Tensor) -> Tensor | None:
    """Log sizes of merged tokens for each row ``(B, P)`` or, packed, ``(rows,)``: what is added to its logits as a key."""
    if layout is None:
        return None
    log_size = layout.tokens.sizes.log()
    if isinstance(layout, Packed):
        return log_size.repeat_interleave(layout.unit)
    return layout.put(log_size.new_zeros(*hidden.shape[:2], 1), log_size[:, None].expand(-1, layout.unit))[..., 0]
