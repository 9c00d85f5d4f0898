"""Position ids of survivors: kept (then nothing is computed at all), or renumbered as if the prompt had been shorter."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.runtime.layout import Rows

_FAR = torch.iinfo(torch.long).max


def renumbered(position_ids: Tensor, layout: Rows, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """Position ids a stock model would give to the tokens present, were they the whole prompt.

    A text token advances the position by one. A span advances it by its extent: on every axis the distinct positions
    of its survivors become consecutive. With one axis (1-D RoPE) that is plain renumbering; with three (M-RoPE) a span
    of which a subgrid is left is numbered like a smaller image.

    Args:
        position_ids: ``(A, B, L)`` of the full sequence, for ``A`` position axes.
        layout: what is present, ``P`` tokens per row.
        present: ``(B, L)`` bool, False for the padding of the prompt; None if it has none.

    Returns:
        ``(A, B, P)`` new ids, and ``(B,)``: how much smaller the position after the last token has become.
    """
    axes, batch, _ = position_ids.shape
    device = position_ids.device
    index = torch.arange(layout.width, device=device).expand(batch, -1) if layout.index is None else layout.index
    old = position_ids.gather(2, index.expand(axes, -1, -1))
    valid = torch.ones_like(index, dtype=torch.bool) if layout.valid is None else layout.valid
    valid = valid if present is None else valid & present.gather(1, index)

    # Blocks: every text token is one, every span is one. `block` is the rank of a token's block in its row.
    span = torch.full_like(index, -1)
    span[layout.row, layout.slot] = layout.tokens.segment
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
    return new.masked_fill(~valid, 0), shift


def _block_min(x: Tensor, block: Tensor) -> Tensor:
    """Least ``x (B, P)`` of each block: ``(B, P)`` by rank of the block; a huge number where there is no such block."""
    return torch.full_like(x, _FAR).scatter_reduce(1, block, x, "amin")
