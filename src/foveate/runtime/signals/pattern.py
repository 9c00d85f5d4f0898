"""Rows and column sums of an attention, from its queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.runtime.masks import rows_of

_HELD = 1 << 23  # attention weights that the column sum makes at once (32 MB; there are two of them for a moment)


@dataclass(frozen=True)
class Pattern:
    """What attention does besides its mask.

    Attributes:
        scaling: of the logits.
        causal: query ``i`` of ``Q`` sees keys up to ``i + K - Q`` only (what a 4-D mask says itself).
        window: how many keys it sees then, or None: all.
        cap: logits are squeezed between this and its negative (soft capping), or None.
    """

    scaling: float
    causal: bool = False
    window: int | None = None
    cap: float | None = None

    @classmethod
    def told(cls, module: Any, query: Tensor, mask: Any, kwargs: Any) -> Pattern:
        """As the attention function is told."""
        scaling, cap = kwargs.get("scaling") or query.shape[-1] ** -0.5, kwargs.get("softcap")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            return cls(scaling, cap=cap)
        causal = kwargs.get("is_causal")  # the mask says nothing of the pattern, so it is the kernel's
        causal = getattr(module, "is_causal", True) if causal is None else causal
        return cls(scaling, bool(causal), kwargs.get("sliding_window"), cap)


def attention(query: Tensor, key: Tensor, mask: Any, how: Pattern, slots: Tensor) -> Tensor:
    """Attention of a few queries: ``softmax(q k^T * scaling + mask)``.

    Args:
        query: ``(B, H, Q, d)``.
        key: ``(B, G, K, d)``, ``H`` a multiple of ``G`` (grouped queries).
        mask: None, ``(B or 1, 1, Q, K)`` bool or additive, ``(B, K)`` keys present, or a flex ``BlockMask``.
        how: the rest of the pattern.
        slots: ``(B, R)`` queries; a negative one gives a row of zeros.

    Returns:
        ``(B, H, R, K)`` fp32.
    """
    batch, heads, n_queries, width = query.shape
    groups, n_keys = key.shape[1], key.shape[2]
    missing = (slots < 0).to(query.device)
    slots = slots.to(query.device).clamp(min=0)
    q = query.gather(2, slots[:, None, :, None].expand(batch, heads, -1, width))
    q = q.view(batch, groups, heads // groups * slots.shape[1], width)
    logits = (q @ key.transpose(2, 3)).float().view(batch, heads, slots.shape[1], n_keys).mul_(how.scaling)
    logits = logits if how.cap is None else (logits / how.cap).tanh() * how.cap
    if how.causal and (n_queries > 1 or how.window is not None):
        behind = (slots + (n_keys - n_queries))[..., None] - torch.arange(n_keys, device=query.device)
        seen = behind >= 0 if how.window is None else (behind >= 0) & (behind < how.window)
        logits.masked_fill_(~seen[:, None], -torch.inf)
    if mask is None:
        pass
    elif not isinstance(mask, Tensor):
        logits.masked_fill_(~rows_of(mask, slots), -torch.inf)
    elif mask.dim() == 2:
        logits.masked_fill_(~mask.bool()[:, None, None, -n_keys:], -torch.inf)
    else:
        rows = mask[..., :n_keys].expand(batch, -1, -1, -1)
        if rows.shape[2] > 1:
            rows = rows.gather(2, slots[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
        logits = logits.masked_fill_(~rows, -torch.inf) if rows.dtype == torch.bool else logits.add_(rows.float())
    # A query that sees nothing (padding of ours) pays no attention, rather than NaN, of which gradients would be NaN, too.
    blind = logits.isneginf().all(-1, keepdim=True)
    paid = logits.masked_fill_(blind, 0.0).softmax(-1)
    nothing = blind | missing[:, None, :, None]
    if paid.requires_grad:  # its backward needs it as it is
        return paid.nan_to_num().masked_fill(nothing, 0.0)
    return paid.nan_to_num_().masked_fill_(nothing, 0.0)


def received(query: Tensor, key: Tensor, mask: Any, how: Pattern, valid: Tensor | None) -> Tensor:
    """Mean over heads and (valid) queries of the attention that each key receives: ``(B, K)`` fp32."""
    batch, heads, n_queries, _ = query.shape
    total = torch.zeros(batch, key.shape[2], device=query.device)
    weight = torch.ones(batch, n_queries, device=query.device) if valid is None else valid.float()
    step = max(1, _HELD // max(1, batch * heads * key.shape[2]))
    for start in range(0, n_queries, step):
        slots = torch.arange(start, min(start + step, n_queries), device=query.device).expand(batch, -1)
        rows = attention(query, key, mask, how, slots).mean(1)  # (B, R, K)
        total += (rows * weight[:, start : start + step, None]).sum(1)
    return total / weight.sum(1, keepdim=True).clamp(min=1)
