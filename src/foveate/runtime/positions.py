"""Positions of survivors: kept (then nothing is computed, but for tokens that merged and moved), or renumbered as if the
prompt had been shorter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.ops.segments import offsets
from foveate.runtime.layout import Rows
from foveate.tokens import Tokens

_FAR = torch.iinfo(torch.long).max


def renumbered(position_ids: Tensor, layout: Rows, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """Position ids a stock model would give to the tokens present, were they the whole prompt.

    A text token advances the position by one. A span advances it by its extent: on every axis the distinct positions
    of its survivors become consecutive. With one axis (1-D RoPE) that is plain renumbering; with three (M-RoPE) a span
    of which a subgrid is left is numbered like a smaller image.

    Args:
        position_ids: ``(A, B, L)`` of the full sequence, for ``A`` position axes, whole numbers or not.
        layout: what is present, ``P`` tokens per row.
        present: ``(B, L)`` bool, False for the padding of the prompt; None if it has none.

    Returns:
        ``(A, B, P)`` new ids, and ``(B,)``: how much smaller the position after the last token has become.
    """
    axes, batch, _ = position_ids.shape
    device, kind = position_ids.device, position_ids.dtype
    if kind.is_floating_point:  # seconds of a video: below, a place and a position share one number
        position_ids = position_ids.double()
    index = torch.arange(layout.width, device=device).expand(batch, -1) if layout.index is None else layout.index
    old = position_ids.gather(2, index.expand(axes, -1, -1))
    valid = torch.ones_like(index, dtype=torch.bool) if layout.valid is None else layout.valid
    valid = valid if present is None else valid & present.gather(1, index)

    # Blocks: every text token is one, every span is one. `block` is the rank of a token's block in its row.
    span = torch.full_like(index, -1)
    # (An appended token is numbered as one of text.)
    span[layout.row, layout.slot] = layout.tokens.segment.masked_fill(layout.tokens.appended, -1)
    fresh = torch.ones_like(valid)
    fresh[:, 1:] = (span[:, 1:] != span[:, :-1]) | (span[:, 1:] < 0) | ~valid[:, :-1]
    block = ((fresh & valid).cumsum(1) - 1).clamp(min=0)

    # Dense rank of each position inside its block, axis by axis: sort (block, position), count the distinct ones.
    span_of_ids = int(layout.full) + 1
    relative = old - _block_min(torch.where(valid, old.amin(0), _FAR), block).gather(1, block)
    key = torch.where(valid, block * span_of_ids + relative.clamp(0, span_of_ids - 1), _FAR)
    ordered, order = key.sort(-1)
    step = torch.ones_like(ordered)
    step[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    dense = torch.empty_like(ordered).scatter_(-1, order, step.cumsum(-1))
    first = torch.stack([_block_min(torch.where(valid, axis, _FAR), block) for axis in dense])
    last = torch.stack([-_block_min(torch.where(valid, -axis, _FAR), block) for axis in dense])
    extent = torch.where(first == _FAR, 0, last - first + 1).amax(0)  # (B, P) of each block
    lowest = position_ids if present is None else position_ids.masked_fill(~present, _FAR)
    start = lowest.amin((0, 2))
    start = torch.where(start == _FAR, 0, start)  # a row of nothing but padding, as a chunk of a prompt may bring
    begin = extent.cumsum(1) - extent + start[:, None]
    new = dense - first.gather(-1, block.expand(axes, -1, -1)) + begin.gather(1, block)

    real = position_ids if present is None else position_ids.masked_fill(~present, -1)
    real_any = torch.ones_like(start, dtype=torch.bool) if present is None else present.any(1)
    end = torch.where(valid, new.amax(0), start[:, None] - 1).amax(1)  # where nothing is left, nothing advances
    shift = torch.where(real_any, real.amax((0, 2)) - end, 0)
    return new.masked_fill(~valid, 0).to(kind), shift.to(kind)


def rotary_at(table: Any, rows: Tensor, moved: Tensor, steps: Sequence[tuple[int, int]]) -> Any:
    """Rotary embeddings of a tower's rows, each moved away from its own place.

    The angles are linear in y and x, so what one patch down or to the right adds to them can be read off two neighbours.

    Args:
        table: cosines and sines of the full sequence, ``(R, d)`` each, or the angles alone.
        rows: ``(K,)``, those present.
        moved: ``(K, 2)`` how far each has moved, in patches, along y and x.
        steps: two rows of the full sequence of which the second is the patch below the first, and two of which it is the one
            to the right (twice the same one where there are no such two).

    Returns:
        The same of ``rows``.
    """
    if isinstance(table, Tensor):
        at = torch.tensor(steps).to(table.device, non_blocking=True)
        return table[rows] + _turned(table[at], moved)
    cos, sin = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in table)
    at = torch.tensor(steps).to(cos.device, non_blocking=True)
    turned = _turned(torch.atan2(sin[at], cos[at]), moved)
    c, s, dc, ds = cos[rows], sin[rows], turned.cos(), turned.sin()
    return (c * dc - s * ds).to(table[0].dtype), (s * dc + c * ds).to(table[1].dtype)


def _turned(angle: Tensor, moved: Tensor) -> Tensor:
    """``(K, d)`` what a move adds to angles; ``angle (2, 2, d)`` are those of the neighbours, see `rotary_at`."""
    step = torch.remainder(angle[:, 1] - angle[:, 0] + math.pi, 2 * math.pi) - math.pi
    down, right = moved.to(step)[..., None].unbind(1)
    return down * step[0] + right * step[1]


def places_of(tokens: Tokens, slot: Tensor) -> Tensor:
    """Tell where in its row each visual token takes its position id from: the slot of the cell that its coordinates point at.

    Args:
        tokens: all visual tokens of this forward.
        slot: ``(N,)`` where each is.

    Returns:
        ``(N,)``; the token's own slot where that cell belongs to another chunk of the prompt.
    """
    shape = torch.tensor(tokens.spans.shape, dtype=torch.long).view(-1, 2)
    start = torch.tensor(offsets(tokens.spans.sizes)[:-1], dtype=torch.long).to(slot.device, non_blocking=True)
    width = shape[:, 1].to(slot.device, non_blocking=True)[tokens.segment]
    first = start[tokens.segment]
    slots = torch.full((sum(tokens.spans.sizes),), -1, device=slot.device).index_copy(0, first + tokens.index, slot)
    y, x = (tokens.coords[:, 1:] + 0.5).floor().long().unbind(1)
    found = slots[first + y * width + x]
    return torch.where(found < 0, slot, found)


def _block_min(x: Tensor, block: Tensor) -> Tensor:
    """Least ``x (B, P)`` of each block: ``(B, P)`` by rank of the block; a huge number where there is no such block."""
    return torch.full_like(x, _FAR).scatter_reduce(1, block, x, "amin")
