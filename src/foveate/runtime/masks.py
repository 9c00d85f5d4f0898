"""Attention masks of reduced layers, derived from the stock mask by taking rows and columns.

Taking is exact for every pattern (causal, sliding, prefix, image blocks, packed), because the pattern is written in
terms of positions in the full sequence, and the layout knows those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["bool", "float", "keys"]  # sdpa: True = attend; eager: added to the logits; flash: (B, K) keys present


def kind_of(implementation: str) -> Kind:
    """What an attention implementation takes as a mask."""
    if implementation == "eager":
        return "float"
    return "keys" if "flash" in implementation else "bool"


@dataclass(frozen=True, eq=False)
class View:
    """One axis of the attention matrix of a reduced layer.

    Attributes:
        index: ``(B, P)`` positions in the full sequence.
        valid: ``(B, P)`` bool, or None: all are.
    """

    index: Tensor
    valid: Tensor | None

    def through(self, slots: View) -> View:
        """What is left when only ``slots`` of this axis are shown."""
        valid = slots.valid
        if self.valid is not None:
            here = self.valid.gather(1, slots.index)
            valid = here if valid is None else here & valid
        return View(self.index.gather(1, slots.index), valid)


def derive(
    mask: Any, queries: View, keys: View, total: int, past: int, kind: Kind, dtype: torch.dtype, causal: bool = True
) -> Any:
    """The mask of a reduced layer.

    Args:
        mask: stock mask: None, 2-D, 4-D or a flex ``BlockMask``, over the full sequence.
        queries, keys: what the layer holds; query positions count from ``past``, key positions from 0.
        total: length of the full sequence including the cache.
        past: tokens of it that were cached before this forward.
        kind: form of the result.
        dtype: of a ``float`` result.
        causal: whether a stock mask of None means causal attention, or full attention (towers, prefix-LM decoders).
    """
    if mask is None:
        return _built(queries, keys, past, kind, dtype, causal)
    if not isinstance(mask, Tensor):
        return _flex(mask, queries, keys)
    first = total - mask.shape[-1]  # a sliding layer's mask starts later than the sequence
    column = keys.index - first
    outside = column < 0
    column = column.clamp(min=0)
    hidden = outside if keys.valid is None else outside | ~keys.valid
    if mask.dim() == 2:
        return mask.gather(1, column).masked_fill(hidden, 0)
    batch = torch.arange(queries.index.shape[0], device=mask.device)[:, None, None]
    rows = queries.index.clamp(max=mask.shape[-2] - 1)
    taken = mask.expand(queries.index.shape[0], -1, -1, -1)[batch, :, rows[:, :, None], column[:, None, :]]
    taken = taken.permute(0, 3, 1, 2)  # (B, 1, Q, K)
    hidden = hidden[:, None, None, :]
    return taken.masked_fill(hidden, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


def _built(queries: View, keys: View, past: int, kind: Kind, dtype: torch.dtype, causal: bool) -> Tensor | None:
    several = queries.index.shape[1] > 1
    # Kernels read None as "causal, aligned top left": right for one token, or when nothing is cached and none is padding.
    if keys.valid is None and (not causal or not several or past == 0):
        return None
    device = keys.index.device
    present = torch.ones_like(keys.index, dtype=torch.bool) if keys.valid is None else keys.valid
    if kind == "keys":
        return present
    allowed = present[:, None, None, :]
    if several and causal:
        allowed = allowed & (keys.index[:, None, None, :] <= (queries.index + past)[:, None, :, None])
    if kind == "bool":
        return allowed
    return torch.zeros((), dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)


def _flex(mask: Any, queries: View, keys: View) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    pattern, q, k, valid = mask.mask_mod, queries.index, keys.index, keys.valid

    def taken(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen: Tensor = pattern(b, h, q[b, i], k[b, j])
        return seen if valid is None else seen & valid[b, j]

    return create_block_mask(taken, q.shape[0], None, q.shape[1], k.shape[1], device=q.device)
