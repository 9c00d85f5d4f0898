"""Marks: how a row of features says that its token has left.

Stock code carries features from the vision tower to the prompt, repeats them for beams and cuts them into chunks, and nothing
else travels with them. So a hole is said in the row itself: not a number in its first and last channel, and between them which
feature of which encoding it is. A tower that overflows makes rows of NaN, too, and these are no holes: in stock code they
spoil the answer, and so they do here.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DIGITS = 6  # to the base of 256, which every dtype holds: three of the feature, three of the encoding


def mark(features: Tensor, hole: Tensor, encoding: int, start: int = 0) -> Tensor:
    """Features whose holes say what they are.

    Args:
        features: ``(R, C)``.
        hole: ``(R,)`` bool.
        encoding: number of the tower call that they come from.
        start: number of the first of them among all features of that call.

    Returns:
        ``(R, C)``; the rows that are no holes are what they were.
    """
    number = torch.arange(start, start + len(features), device=features.device)
    digits = [number // 256**i % 256 for i in range(3)]
    digits += [torch.full_like(number, encoding // 256**i % 256) for i in range(3)]
    marked = features.new_full(features.shape, torch.nan)
    marked[:, 1 : 1 + _DIGITS] = torch.stack(digits, dim=-1).to(features.dtype)[:, : max(0, features.shape[1] - 2)]
    return torch.where(hole[:, None], marked, features)


def holes(rows: Tensor) -> Tensor:
    """Tell which of ``rows (..., C)`` are marked: ``(...)`` bool."""
    digits = rows[..., 1 : min(1 + _DIGITS, rows.shape[-1] - 1)]
    whole = (digits >= 0) & (digits < 256) & (digits == digits.floor())  # all of it false for NaN
    return rows[..., 0].isnan() & rows[..., -1].isnan() & whole.all(-1)
