"""Optimal transport between sets of points, many at once."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor


def sinkhorn(cost: Tensor, there: Tensor, epsilon: float, rounds: int = 20) -> Tensor:
    """Return the entropic transport distance of pairs of sets, whose points all weigh the same: ``(...)``.

    Args:
        cost: ``(..., Q, P)``, from each point of the one set to each of the other.
        there: bool, of the same shape, pairs of points that there are; all pairs of some rows with some columns. A pair of sets
            of which one is empty has distance 0.
        epsilon: strength of the entropic term, above 0.
        rounds: how often rows and columns are scaled to their sums.
    """
    plan = torch.where(there, -cost / epsilon, -inf)
    # Scaled along the columns, each row has its share of the whole, one over the number of rows; and the other way round.
    rows, columns = (there.any(axis).sum(-1)[..., None, None].clamp(min=1).log() for axis in (-1, -2))
    for _ in range(rounds):
        for axis, points in ((-1, rows), (-2, columns)):
            plan = torch.where(there, plan - plan.logsumexp(axis, keepdim=True) - points, -inf)
    return torch.where(there, plan.exp() * cost, 0.0).sum((-1, -2))
