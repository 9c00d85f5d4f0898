"""What a block of the vision tower is called with: the rows present have their own mask, rotary embeddings and segments."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from foveate.errors import UnsupportedModelError
from foveate.models.family import Tower
from foveate.runtime.layout import displacement
from foveate.runtime.masks import View, derive, kind_of
from foveate.runtime.memo import Memo
from foveate.runtime.parking import Attending
from foveate.runtime.positions import rotary_at
from foveate.runtime.protocol import Layout
from foveate.runtime.signals.kernel import real_implementation
from foveate.runtime.trace import BlockTrace

#: arguments with the length of the longest segment, which flash kernels take; where new tokens have come, it may be larger
LONGEST = ("max_seqlen", "max_length_q", "max_length_k")


def block_arguments(
    spec: Tower, memo: Memo, layout: Layout, block: nn.Module, hidden: Tensor, kwargs: Any
) -> tuple[dict[str, Any], dict[str, Tensor | None]]:
    """Arguments of a block for the rows present, and of its attention, where the block does not pass them on."""
    new, masks = dict(kwargs), dict[str, Tensor | None]()
    ids = kwargs.get("position_ids")
    if ids is not None and ids.dim() < 3 and seqlens_of(spec, kwargs) is None and _is_flash(spec, block):
        raise UnsupportedModelError(
            "in this transformers flash attention takes the beginnings of images from their position ids, which does not work "
            'once patches have left: use set_attn_implementation("sdpa") or a newer transformers'
        )
    for name, axis in (*spec.block_args.items(), *spec.attention_args.items()):
        value = kwargs.get(name)
        if axis == "mask":
            if layout.valid is not None or value is not None:
                config: Any = block.get_submodule(spec.attention).config
                assert layout.index is not None
                view = View(layout.index, layout.valid)
                kind = kind_of(real_implementation(config))
                mask = derive(value, view, view, layout.full, 0, kind, hidden.dtype, causal=False)
                (masks if name in spec.attention_args else new)[name] = mask
            continue
        if value is None:
            continue
        new[name] = memo.once(name, (layout, value), partial(_for_layout, value, axis, layout))
    if layout.tokens.marks is not None and any(kwargs.get(name) is not None for name in LONGEST):
        ends = seqlens_of(spec, new)
        longest = memo.once("longest", (ends,), lambda: int(ends.diff().max()))
        new |= {name: longest for name in LONGEST if kwargs.get(name) is not None}
    return new, masks


def _is_flash(spec: Tower, block: nn.Module) -> bool:
    config: Any = block.get_submodule(spec.attention).config
    return "flash" in real_implementation(config)


def seqlens_of(spec: Tower, kwargs: Any) -> Any:
    """Return the cumulative lengths that a block is called with; None: it is called with none."""
    given = (kwargs.get(name) for name, axis in spec.block_args.items() if axis == "seqlens")
    return next((value for value in given if value is not None), None)


def _for_layout(value: Any, axis: int | str, layout: Layout) -> Any:
    if axis == "seqlens":
        return layout.seqlens(value)
    if axis == "rotary" and (layout.moved or layout.tokens.marks is not None):
        return _rotary(value, layout)
    return _each(value, lambda part: layout.of_full(part, part.dim() - 2 if axis == "rotary" else int(axis)))


def _rotary(value: Tensor | tuple[Tensor, Tensor], layout: Layout) -> Any:
    """Rotary embeddings ``(rows, d)``, or ``(images, rows, d)``, where some token is not at its own place."""
    moved = layout.per_row(displacement(layout.tokens) * math.isqrt(layout.unit)).flatten(0, -2)
    rows, steps = layout.table()
    first = value if isinstance(value, Tensor) else value[0]
    table = _each(value, lambda part: part.flatten(0, -2))
    made = rotary_at(table, rows.to(first.device), moved.to(first.device), steps)
    return _each(made, lambda part: part.view(*first.shape[:-2], -1, part.shape[-1]))


def _each(value: Tensor | tuple[Tensor, ...], do: Callable[[Tensor], Tensor]) -> Any:
    return do(value) if isinstance(value, Tensor) else tuple(map(do, value))


def trace_of(
    spec: Tower, block: int, hidden: Tensor, kwargs: dict[str, Any], attending: Attending | None, standing: int | None
) -> BlockTrace:
    """Return what a report knows of a block that is called with these rows; so many are ``standing`` in for none."""
    rows, segments = hidden.shape[:-1].numel(), seqlens_of(spec, kwargs)
    if segments is None:
        segments = [hidden.shape[1]] * hidden.shape[0]
    trace = BlockTrace(block, standing or rows, rows, segments)
    if attending is not None:
        attending.note(trace, rows, segments)
    return trace


def sight_of(layout: Layout | None) -> tuple[Tensor, Tensor] | None:
    """Return the group of each row ``(B, P)`` or, packed, ``(rows,)``, -1 for special ones, and who sees whom; None: all do."""
    sight = None if layout is None else layout.sight
    if layout is None or sight is None:
        return None
    groups = layout.per_row(sight.group[:, None] + 1)[..., 0] - 1
    return groups, sight.sees.to(groups.device, non_blocking=True)


def key_bias(layout: Layout | None) -> Tensor | None:
    """Log sizes of merged tokens for each row ``(B, P)`` or, packed, ``(rows,)``: what is added to its logits as a key."""
    return layout.per_row(layout.tokens.sizes.log()[:, None])[..., 0] if layout is not None and layout.merged else None
