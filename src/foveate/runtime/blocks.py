"""What a block of the vision tower is called with: the rows present have their own mask, rotary embeddings and segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedModelError
from foveate.models.family import Tower
from foveate.ops.segments import offsets
from foveate.runtime.context import TowerPass
from foveate.runtime.layout import Packed, Rows, displacement, take_rows
from foveate.runtime.masks import View, derive, kind_of
from foveate.runtime.positions import rotary_at
from foveate.runtime.signals.kernel import real_implementation


def block_arguments(
    spec: Tower, call: TowerPass, layout: Rows | Packed, block: nn.Module, hidden: Tensor, kwargs: Any
) -> Any:
    """Arguments of a block for the rows present."""
    new = dict(kwargs)
    ids = kwargs.get("position_ids")
    if ids is not None and ids.dim() < 3 and seqlens_of(spec, kwargs) is None and _is_flash(spec, block):
        raise UnsupportedModelError(
            "in this transformers flash attention takes the beginnings of images from their position ids, which does not work "
            'once patches have left: use set_attn_implementation("sdpa") or a newer transformers'
        )
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


def _is_flash(spec: Tower, block: nn.Module) -> bool:
    config: Any = block.get_submodule(spec.attention).config
    return "flash" in real_implementation(config)


def seqlens_of(spec: Tower, kwargs: Any) -> Any:
    """The cumulative lengths that a block is called with; None: it is called with none."""
    given = (kwargs.get(name) for name, axis in spec.block_args.items() if axis == "seqlens")
    return next((value for value in given if value is not None), None)


def _for_layout(value: Any, axis: int | str, layout: Rows | Packed, moved: bool) -> Any:
    if axis == "seqlens":
        if isinstance(layout, Packed):
            return layout.seqlens(value)
        lengths = [n for n in layout.present() if n]  # of the images in a single row
        return torch.tensor(offsets(lengths or [layout.width]), dtype=value.dtype).to(value.device, non_blocking=True)
    if axis == "rotary":
        return _rotary(value, layout, moved)
    if isinstance(value, tuple):
        return tuple(_for_layout(item, axis, layout, moved) for item in value)
    if isinstance(layout, Packed):
        return value.index_select(int(axis), layout.rows().to(value.device))
    assert layout.index is not None
    return take_rows(value, layout.index, int(axis))


def _rotary(value: Tensor | tuple[Tensor, Tensor], layout: Rows | Packed, moved: bool) -> Any:
    if isinstance(layout, Packed):
        rows = layout.rows().to(value[0].device)
    elif isinstance(value, tuple) and value[0].dim() == 3:
        return _rotary_of_images(value, layout, moved)
    else:
        assert layout.index is not None
        rows = layout.index[0].to(value[0].device)
    if not moved and isinstance(value, Tensor):
        return value.index_select(0, rows)
    if not moved:
        return tuple(part.index_select(0, rows) for part in value)
    side = math.isqrt(layout.unit)
    patches = (displacement(layout.tokens) * side).repeat_interleave(layout.unit, dim=0)
    if isinstance(layout, Packed):
        return rotary_at(value, rows, patches, ((0, side), (0, 1)))
    patches = patches.new_zeros(layout.width, 2).index_copy(0, layout.slot, patches)
    first = offsets([height * width for height, width in layout.patch_sides])
    return rotary_at(value, rows, patches, _steps(first, layout.patch_sides))


def _rotary_of_images(value: tuple[Tensor, Tensor], layout: Rows, moved: bool) -> tuple[Tensor, Tensor]:
    """Rotary embeddings ``(images, rows, d)``."""
    assert layout.index is not None
    index, (images, n, _) = layout.index.to(value[0].device), value[0].shape
    if not moved:
        return take_rows(value[0], index), take_rows(value[1], index)
    side, first = math.isqrt(layout.unit), torch.arange(images, device=index.device)[:, None] * n
    patches = (displacement(layout.tokens) * side).repeat_interleave(layout.unit, dim=0)
    patches = patches.new_zeros(images * layout.width, 2).index_copy(
        0, layout.row * layout.width + layout.slot, patches
    )
    steps = _steps(range(0, images * n, n), layout.patch_sides)
    table = (value[0].flatten(0, 1), value[1].flatten(0, 1))
    cos, sin = rotary_at(table, (index + first).flatten(), patches.to(index.device), steps)
    return cos.view(*index.shape, -1), sin.view(*index.shape, -1)


def _steps(first: Sequence[int], sides: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """Rows of the patches one down, and one to the right, of images that begin at row ``first``; see `rotary_at`."""
    down = ((a, a + width) for a, (height, width) in zip(first, sides) if height > 1)
    right = ((a, a + 1) for a, (_, width) in zip(first, sides) if width > 1)
    return next(down, (0, 0)), next(right, (0, 0))


def parts_of(own: Rows | Packed, shown: Rows | Packed | None) -> tuple[tuple[int, int], ...]:
    """Rows that a block has and rows that its attention is shown (None: the same) of each image, if several share a row."""
    if isinstance(own, Packed) or len(own.lengths) > 1 or len(own.tokens.counts) == 1:
        return ()
    shown = shown or own
    return tuple(zip(own.present(), shown.present())) if isinstance(shown, Rows) else ()


def key_bias(layout: Rows | Packed | None, hidden: Tensor) -> Tensor | None:
    """Log sizes of merged tokens for each row ``(B, P)`` or, packed, ``(rows,)``: what is added to its logits as a key."""
    if layout is None:
        return None
    log_size = layout.tokens.sizes.log()
    if isinstance(layout, Packed):
        return log_size.repeat_interleave(layout.unit)
    return layout.put(log_size.new_zeros(*hidden.shape[:2], 1), log_size[:, None].expand(-1, layout.unit))[..., 0]
