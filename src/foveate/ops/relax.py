"""Choices of tokens that gradients go through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops.segments import segment_ids, segment_max, segment_sum

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
