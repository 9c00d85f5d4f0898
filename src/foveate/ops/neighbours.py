"""Nearest neighbours by Euclidean distance, segment by segment, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops.segments import (
    alike,
    offsets,
    padded_index,
    padded_pairs,
    ranges,
    rows_of,
    segment_ids,
    segment_mean,
    to_padded,
)

_CELLS = 1 << 24  # distances held at once (64 MB)


def nearest(
    queries: Tensor, counts: Sequence[int], points: Tensor, n_points: Sequence[int], k: int, cells: int = _CELLS
) -> Tensor:
    """Return the ``min(k, n_points[s])`` points of the same segment that are nearest to each query.

    Args:
        queries: ``(Q, C)`` packed.
        counts: queries per segment, sums to ``Q``; 0 where a segment has no point.
        points: ``(P, C)`` packed.
        n_points: points per segment, sums to ``P``.
        k: neighbours, at least 1.
        cells: distances held at once; at least one query of every segment.

    Returns:
        ``(sum(bags(...)),)`` int64 indices into ``points``: the neighbours of each query, nearest first, query after
        query. Distances are taken in fp32 at least.
    """
    groups, device = alike(counts, n_points), queries.device
    if len(groups) == 1:
        return _nearest(queries, counts, points, n_points, k, cells)
    lengths = [n * min(k, m) for n, m in zip(counts, n_points)]  # of what is found for each segment
    index = torch.empty(sum(lengths), dtype=torch.long, device=device)
    for members in groups:
        rows, own = rows_of(members, counts, device), rows_of(members, n_points, device)
        few = [counts[s] for s in members], [n_points[s] for s in members]
        if not sum(few[0]):
            continue
        found = _nearest(queries[rows], few[0], points[own], few[1], k, cells)
        index[rows_of(members, lengths, device)] = own[found]
    return index


def _nearest(
    queries: Tensor, counts: Sequence[int], points: Tensor, n_points: Sequence[int], k: int, cells: int
) -> Tensor:
    """Find what `nearest` says, in segments of like lengths."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    centre = segment_mean(points.to(wide), segment_ids(n_points, points.device), len(n_points))
    # A few channels of a residual stream are huge; around their mean the expanded square loses little to rounding.
    q = to_padded(queries.to(wide) - centre[segment_ids(counts, queries.device)], counts)  # (S, max counts, C)
    p = to_padded(points.to(wide) - centre[segment_ids(n_points, points.device)], n_points)  # (S, max n_points, C)
    there, first = (
        torch.tensor(each).to(p.device, non_blocking=True) for each in (list(n_points), offsets(n_points)[:-1])
    )
    exists = torch.arange(p.shape[1], device=p.device) < there[:, None]
    half = (p.square().sum(-1) / 2).masked_fill(~exists, torch.inf)[:, None]  # (S, 1, max n_points)
    wanted = min(k, p.shape[1])
    step = max(1, cells // max(1, half.numel()))
    # |q - p|^2 = |q|^2 - 2 (q p - |p|^2 / 2), and |q|^2 is the same for all points.
    found = [
        torch.topk(torch.matmul(part, p.transpose(1, 2)) - half, wanted, dim=-1).indices
        for part in q.split(step, dim=1)
    ]
    index = (torch.cat(found, dim=1) + first[:, None, None]).flatten(0, 1)[
        padded_index(counts, p.device)
    ]  # (Q, wanted)
    lengths = bags(counts, n_points, k)
    return index.flatten()[ranges([i * wanted for i in range(len(lengths))], lengths, p.device)]


def bags(counts: Sequence[int], n_points: Sequence[int], k: int) -> list[int]:
    """Tell how many neighbours `nearest` finds for each query: ``(Q,)`` ints."""
    return [min(k, points) for queries, points in zip(counts, n_points) for _ in range(queries)]


def bag_means(values: Tensor, index: Tensor, lengths: Sequence[int]) -> Tensor:
    """Means of rows of ``values (P, C)``: of the ``lengths[0]`` rows that ``index`` names first, and so on: ``(Q, C)``."""
    starts = torch.tensor(offsets(lengths)[:-1], dtype=torch.long).to(values.device, non_blocking=True)
    return torch.nn.functional.embedding_bag(index, values, starts, mode="mean")


def products(counts: Sequence[int], n_points: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `nearest` (2 per multiply-add)."""
    return 2 * padded_pairs(counts, n_points) * width
