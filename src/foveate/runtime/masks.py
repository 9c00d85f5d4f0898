"""Attention masks of reduced layers, derived from the stock mask by taking rows and columns.

Taking is exact for every pattern (causal, sliding, prefix, image blocks, packed), because the pattern is written in
terms of positions in the full sequence, and the layout knows those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from foveate.errors import UnsupportedModelError
from foveate.runtime.layout import take_rows

#: whether query ``i`` of batch row ``b`` may see key ``j``, for any shapes of ``(b, i, j)`` that fit each other
Limit: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
#: sdpa: True = attend; eager: added to the logits; flash: (B, K) keys present; flex: a BlockMask
Kind = Literal["bool", "float", "keys", "flex"]


def kind_of(implementation: str) -> Kind:
    """Return what an attention implementation takes as a mask."""
    if implementation == "eager":
        return "float"
    if implementation == "flex_attention":
        return "flex"
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

    def without(self, hidden: Tensor) -> View:
        """The same, as if what is ``hidden (B, P)`` were padding."""
        return View(self.index, ~hidden if self.valid is None else self.valid & ~hidden)

    def append(self, place: int) -> View:
        """The same and, at the end of every row, one more ``place``."""
        index = torch.cat([self.index, self.index.new_full((len(self.index), 1), place)], 1)
        valid = self.valid
        return View(index, None if valid is None else torch.cat([valid, valid.new_ones(len(valid), 1)], 1))

    def through(self, slots: View) -> View:
        """Return what is left when only ``slots`` of this axis are shown."""
        valid = slots.valid
        if self.valid is not None:
            here = self.valid.gather(1, slots.index)
            valid = here if valid is None else here & valid
        return View(self.index.gather(1, slots.index), valid)


def derive(
    mask: Any,
    queries: View,
    keys: View,
    total: int,
    past: int,
    kind: Kind,
    dtype: torch.dtype,
    causal: bool = True,
    limits: Sequence[Limit] = (),
) -> Any:
    """Return the mask of a reduced layer.

    Args:
        mask: stock mask: None, 2-D, 4-D or a flex ``BlockMask``, over the full sequence.
        queries, keys: what the layer holds; query positions count from ``past``, key positions from 0.
        total: length of the full sequence including the cache.
        past: tokens of it that were cached before this forward.
        kind: form of the result.
        dtype: of a ``float`` result.
        causal: whether a stock mask of None means causal attention, or full attention (towers, prefix-LM decoders).
        limits: whether query ``i`` of batch row ``b`` may see key ``j`` of those that the layer holds, besides that mask.
    """
    if mask is None:
        return _built(queries, keys, past, kind, dtype, causal, limits)
    if not isinstance(mask, Tensor):
        return _flex(mask.mask_mod, queries, keys, total - mask.seq_lengths[1], limits)
    first = total - mask.shape[-1]  # a sliding layer's mask starts later than the sequence
    column, hidden = keys.index, None if keys.valid is None else ~keys.valid
    if first:
        outside = column < first
        column = (column - first).clamp(min=0)
        hidden = outside if hidden is None else outside | hidden
    if mask.dim() == 2:
        taken = mask.gather(1, column)
        return taken if hidden is None else taken.masked_fill(hidden, 0)
    whole = mask.expand(queries.index.shape[0], -1, -1, -1)
    if mask.shape[-2] == queries.index.shape[1] == 1:  # a generated token
        taken = take_rows(whole, column, 3)
    else:
        batch = torch.arange(len(whole), device=mask.device)[:, None, None]
        missing = total - past - mask.shape[-2]  # one of the last queries only
        rows = (queries.index - missing).clamp(min=0, max=mask.shape[-2] - 1)
        taken = whole[batch, :, rows[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)  # (B, 1, Q, K)
    hidden = None if hidden is None else hidden[:, None, None, :]
    for limit in limits:
        beyond = ~_pairs(limit, queries, keys)
        hidden = beyond if hidden is None else hidden | beyond
    if hidden is None:
        return taken
    return taken.masked_fill(hidden, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


def weighed(mask: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """``(B, 1, Q, K)`` floats: a mask, and for the last keys ``bias (B, K')``, which is added to their logits."""
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    added = torch.nn.functional.pad(bias.to(dtype), (mask.shape[-1] - bias.shape[1], 0))[:, None, None]
    added = added.expand(-1, 1, mask.shape[-2], -1) if mask.dtype == torch.bool else mask + added
    return added.masked_fill(~seen, torch.finfo(dtype).min)


def _pairs(limit: Limit, queries: View, keys: View) -> Tensor:
    """``(B, 1, Q, K)`` bool: what a limit says of all pairs."""
    batch, i, j = (torch.arange(n, device=keys.index.device) for n in (*queries.index.shape, keys.index.shape[1]))
    return limit(batch[:, None, None], i[None, :, None], j[None, None, :])[:, None]


def _built(
    queries: View, keys: View, past: int, kind: Kind, dtype: torch.dtype, causal: bool, limits: Sequence[Limit]
) -> Any:
    several, plain = queries.index.shape[1] > 1, keys.valid is None and not limits
    # Kernels read None as "causal, aligned top left": right for one token, or when queries are the keys and none is padding.
    if plain and (not causal or not several or (past == 0 and queries.index.shape == keys.index.shape)):
        return None
    if kind == "flex":
        return _flex(lambda b, h, i, j: (j <= i + past) | (not causal), queries, keys, 0, limits)
    device = keys.index.device
    present = torch.ones_like(keys.index, dtype=torch.bool) if keys.valid is None else keys.valid
    if kind == "keys":
        return present
    allowed = present[:, None, None, :]
    if several and causal:
        allowed = allowed & (keys.index[:, None, None, :] <= (queries.index + past)[:, None, :, None])
    for limit in limits:
        allowed = allowed & _pairs(limit, queries, keys)
    if kind == "bool":
        return allowed
    return torch.zeros((), dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)


def of_queries(mask: Any, index: Tensor) -> Any:
    """Return a flex ``BlockMask`` for the queries ``index (B, Q')`` of those that it has."""
    batch, keys = index.shape[0], torch.arange(mask.seq_lengths[1], device=index.device)
    return _flex(mask.mask_mod, View(index, None), View(keys.expand(batch, -1), None), 0)


def rows_of(mask: Any, index: Tensor) -> Tensor:
    """``(B, 1, R, K)`` bool: what the queries ``index (B, R)`` may see by a flex ``BlockMask``."""
    zero, keys = index.new_zeros(()), torch.arange(mask.seq_lengths[1], device=index.device)
    batch = torch.arange(index.shape[0], device=index.device)
    seen: Tensor = mask.mask_mod(batch[:, None, None], zero, index[:, :, None], keys)
    return seen.expand(*index.shape, len(keys))[:, None]


def _flex(pattern: Callable[..., Any], queries: View, keys: View, first: int, limits: Sequence[Limit] = ()) -> Any:
    """Return the flex mask that says ``pattern`` of places in the full sequence; the stock one began at key ``first``."""
    from torch.nn.attention import flex_attention

    plain = getattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    if queries.index.device.type == "cpu" and not plain:
        raise UnsupportedModelError(
            "flex attention on a CPU compiles a kernel for every length, and torch cannot for the masks of reduced layers: use "
            "sdpa there"
        )
    q, k = queries.index, keys.index - first
    shown = k >= 0 if keys.valid is None else (k >= 0) & keys.valid
    k = k.clamp(min=0)

    def taken(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen: Tensor = pattern(b, h, q[b, i], k[b, j]) & shown[b, j]
        for limit in limits:
            seen = seen & limit(b, i, j)
        return seen

    return flex_attention.create_block_mask(taken, q.shape[0], None, q.shape[1], k.shape[1], device=q.device)
