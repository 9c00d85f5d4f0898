"""Choices of tokens that gradients go through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops.segments import (
    alike,
    padded_index,
    padded_pairs,
    rows_of,
    segment_ids,
    segment_max,
    segment_sum,
    to_padded,
)

_HALVINGS = 50  # of an interval of scores: more than floats can tell apart
_REACH = 20.0  # sigmoid(-20) of a thousand tokens together is far below one token


def soft_top_k(score: Tensor, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """Gates between 0 and 1 that sum to ``k[s]`` in each segment: ``sigmoid(score + t)`` with one ``t`` a segment.

    The larger the differences of scores, the nearer the gates are to those of the hard choice of the ``k`` best. ``t`` is found
    by bisection, and its gradient is that of the equation that it solves: ``dt = -sum(v dscore) / sum(v)``, where ``v`` is the
    slope of the sigmoid. A segment that keeps all or none of its tokens has gates of 1 or 0, and no gradient.

    Args:
        score: ``(N,)``, higher is better.
        counts: tokens per segment, sums to ``N``.
        k: what the gates of each segment sum to, ``0 <= k[s] <= counts[s]``.

    Returns:
        ``(N,)``, in fp32 at least.
    """
    wide, segment, n = (
        score.to(torch.promote_types(score.dtype, torch.float32)),
        segment_ids(counts, score.device),
        len(counts),
    )
    target = torch.tensor(k).to(wide, non_blocking=True)
    with torch.no_grad():
        low = -segment_max(wide, segment, n) - _REACH
        high = segment_max(-wide, segment, n) + _REACH
        for _ in range(_HALVINGS):
            t = (low + high) / 2
            above = segment_sum((wide + t[segment]).sigmoid(), segment, n) > target
            low, high = torch.where(above, low, t), torch.where(above, t, high)
    gates = (wide + t[segment]).sigmoid()
    slope = segment_sum((gates * (1 - gates)).detach(), segment, n).clamp(min=torch.finfo(wide.dtype).tiny)
    step = (segment_sum(gates, segment, n) - target) / slope  # next to nothing, but for its gradient
    gates = (wide + (t - step)[segment]).sigmoid()
    whole, none = (
        torch.tensor([each == full for each, full in zip(k, of)]).to(wide.device, non_blocking=True)
        for of in (counts, [0] * n)
    )
    return gates.masked_fill(whole[segment], 1.0).masked_fill(none[segment], 0.0)


def soft_assign(
    query: Tensor, key: Tensor, counts: Sequence[int], others: Sequence[int], noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Assign each row of a segment to the row of the same segment of ``key`` with which it has the largest product.

    Args:
        query: ``(N, C)``.
        key: ``(K, C)``.
        counts: rows of ``query`` per segment, sums to ``N``.
        others: rows of ``key`` per segment, sums to ``K``.
        noise: that much Gumbel noise is added to products; with 1, the choice is a draw by the softmax.

    Returns:
        ``(N,)`` the probability of the choice, in fp32, through which gradients go; and ``(N,)`` int64, which row of ``key`` it
        is: ``K`` where a segment has none.
    """
    chance, which = query.new_zeros(len(query), dtype=torch.float32), torch.full((len(query),), len(key))
    which = which.to(query.device, non_blocking=True)
    some, many, few = _both(counts, others)
    for group in alike(many, few) if some else []:
        members = [some[i] for i in group]
        rows, columns = (rows_of(members, each, query.device) for each in (counts, others))
        n, k = ([each[i] for i in group] for each in (many, few))
        logits = (to_padded(query[rows], n) @ to_padded(key[columns], k).mT).float()
        there = to_padded(torch.ones_like(columns, dtype=torch.bool), k, False)
        logits = logits.masked_fill(~there[:, None], -torch.inf)
        if noise:
            logits = logits - noise * torch.empty_like(logits).exponential_().log()
        best, column = logits.softmax(-1).max(-1)
        at = padded_index(n, query.device)
        chance = chance.index_copy(0, rows, best.flatten()[at])
        which = which.index_copy(0, rows, to_padded(columns, k, 0).gather(1, column).flatten()[at])
    return chance, which


def assigned_pairs(counts: Sequence[int], others: Sequence[int]) -> int:
    """Pairs of rows of which `soft_assign` computes a product."""
    return padded_pairs(*_both(counts, others)[1:])


def _both(counts: Sequence[int], others: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """The segments that have rows of both, and how many of each."""
    some = [s for s, (n, k) in enumerate(zip(counts, others)) if n and k]
    return some, [counts[s] for s in some], [others[s] for s in some]
