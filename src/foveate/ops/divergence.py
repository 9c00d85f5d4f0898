"""How far two distributions are from each other, segment by segment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops.segments import normalise, segment_ids, segment_sum


def jensen_shannon(p: Tensor, q: Tensor, counts: Sequence[int]) -> Tensor:
    """Jensen-Shannon divergence in nats of two distributions over each segment: ``(S,)``, from 0 (alike) to ln 2.

    Args:
        p, q: ``(N,)`` weights, not negative; those of a segment are divided by their sum.
        counts: items per segment, sums to ``N``. A segment without any has a divergence of 0.
    """
    p, q = (normalise(each, counts, to="sum") for each in (p, q))
    mean = (p + q) / 2
    # x log (x / m) = x log x - x log m, and 0 where x is 0.
    terms = sum(torch.xlogy(each, each) - torch.xlogy(each, mean) for each in (p, q))
    return segment_sum(torch.as_tensor(terms) / 2, segment_ids(counts, p.device), len(counts)).clamp(min=0)
