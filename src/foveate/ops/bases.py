"""A few tokens of each segment as a basis of all: which ones, and how well they make up the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops.segments import (
    alike,
    choose_alike,
    offsets,
    padded_index,
    rows_of,
    segment_ids,
    segment_mean,
    to_padded,
)

_RIDGE = 1e-5
#: A direction of a basis with less than this share of the first one's length is rounding (of two tokens that are the same).
_FLAT = 1e-6
#: Squared distances from a mean above this share of the largest one are as large.
_NEARLY = 0.9999


def farthest(features: Tensor, counts: Sequence[int], k: Sequence[int], score: Tensor | None = None) -> Tensor:
    """Greedily choose the tokens of each segment that are farthest from those chosen so far.

    Distances are Euclidean. Ties go to the earlier token, of the first choice also those that rounding may have made (of two
    tokens both are as far from their mean).

    Args:
        features: ``(N, C)``.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.
        score: ``(N,)``, of which the largest is the first choice of a segment; None: how far a token is from their mean.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    return choose_alike(
        lambda at: _farthest(features[at.rows], at.counts, at.k, None if score is None else score[at.rows]),
        counts,
        k,
        features.device,
    )


def farthest_flops(counts: Sequence[int], k: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `farthest` (2 per multiply-add)."""
    rows = 0
    for members in alike(counts):
        picks = max((k[s] for s in members), default=0)
        rows += len(members) * max((counts[s] for s in members), default=0) * picks
    return 2 * rows * width


def _farthest(features: Tensor, counts: list[int], k: list[int], score: Tensor | None) -> Tensor:
    """Find what `farthest` says, in segments of like lengths."""
    device, picks = features.device, []
    of = segment_ids(counts, device)
    wide = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    x = to_padded(wide - segment_mean(wide, of, len(counts))[of], counts)  # a common part costs digits of squares
    square, segment = x.square().sum(-1), torch.arange(len(counts), device=device)
    free = to_padded(torch.ones_like(of, dtype=torch.bool), counts, False)
    reach = square if score is None else to_padded(score.float(), counts)
    for i in range(max(k)):
        able = reach.masked_fill(~free, -torch.inf)
        able = able if i or score is not None else (able >= _NEARLY * able.amax(1, keepdim=True)).to(torch.uint8)
        pick = able.argmax(1)
        free = free.scatter(1, pick[:, None], False)
        product = torch.bmm(x, x[segment, pick][:, :, None])[..., 0]
        away = (square + square[segment, pick][:, None] - 2 * product).clamp(min=0)
        reach = torch.minimum(reach, away) if i else away
        picks.append(pick)
    start = torch.tensor(offsets(counts)[:-1]).to(device, non_blocking=True)
    return (torch.stack(picks, 1) + start[:, None]).flatten()[padded_index(k, device)]


def approximation_error(features: Tensor, counts: Sequence[int], basis: Tensor, n_basis: Sequence[int]) -> Tensor:
    """Return how far each token is from the best linear combination of its segment's basis, by a ridge regression: ``(N,)``.

    Args:
        features: ``(N, C)``.
        counts: tokens per segment, sums to ``N``.
        basis: ``(sum(n_basis),)`` packed indices, ascending.
        n_basis: per segment, how many of these are its own.
    """
    x, device = features.detach().to(torch.promote_types(features.dtype, torch.float32)), features.device
    error = torch.empty(len(x), dtype=x.dtype, device=device)
    for members in alike(counts):
        few, own = [counts[s] for s in members], [n_basis[s] for s in members]
        rows = rows_of(members, counts, device)
        if not len(rows):
            continue
        each = to_padded(x[rows], few)
        by = to_padded(
            x[basis[rows_of(members, n_basis, device)]], own
        )  # (S, M, C); a missing one is zero, and adds nothing
        length, turned = torch.linalg.eigh(by @ by.transpose(1, 2))
        there = length > _FLAT * length[:, -1:]
        shrink = torch.where(there, 1 / (length + _RIDGE).clamp(min=_RIDGE), 0.0)[:, :, None]
        axes = turned.transpose(1, 2) @ by  # (S, M, C), as long as the root of `length`
        weight = shrink * (axes @ each.transpose(1, 2))
        away = torch.linalg.vector_norm(each - weight.transpose(1, 2) @ axes, dim=-1)
        error[rows] = away.flatten()[padded_index(few, device)]
    return error


def approximation_flops(counts: Sequence[int], n_basis: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `approximation_error` (2 per multiply-add)."""
    products = 0
    for members in alike(counts):
        n, m = max((counts[s] for s in members), default=0), max((n_basis[s] for s in members), default=0)
        products += len(members) * (2 * m * m + 2 * m * n) if n else 0
    return 2 * products * width
