"""Selectors: which tokens of each segment survive. All return packed indices in ascending order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops.segments import offsets, padded_index, ranges, segment_ids, to_padded


def top_k(score: Tensor, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """The ``k[s]`` highest scores of each segment; ties go to the earlier token.

    Args:
        score: ``(N,)``, higher is better.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    by_score = torch.argsort(score, descending=True, stable=True)
    segment = segment_ids(counts, score.device)[by_score]
    order = by_score[torch.argsort(segment, stable=True)]  # segments in order, best first inside each
    return order[ranges(offsets(counts)[:-1], k, score.device)].sort().values


def stride(counts: Sequence[int], k: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """``k[s]`` evenly spaced tokens of each segment: token ``floor((i + 1/2) * n / k)`` for ``i < k``.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    segment = segment_ids(k)
    n, kept = (torch.tensor(lengths, dtype=torch.long)[segment] for lengths in (counts, k))
    start = torch.tensor(offsets(counts)[:-1], dtype=torch.long)[segment]
    rank = ranges([0] * len(k), k)
    return (start + ((2 * rank + 1) * n) // (2 * kept)).to(device, non_blocking=True)


def farthest_point(features: Tensor, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """Greedy max-min selection by cosine distance (farthest-point sampling), all segments at once.

    The first pick of a segment is the token whose nearest neighbour is farthest; each next pick is the token
    farthest from everything picked so far.

    Args:
        features: ``(N, C)``.
        counts: tokens per segment.
        k: survivors per segment.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    if sum(k) == 0:
        return torch.empty(0, dtype=torch.long, device=features.device)
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    x = to_padded(unit, counts)  # (S, n, C)
    n = x.shape[1]
    exists = torch.arange(n, device=x.device) < torch.tensor(counts, device=x.device)[:, None]  # (S, n)
    distance = 1 - x @ x.transpose(1, 2)  # (S, n, n)
    diagonal = torch.eye(n, dtype=torch.bool, device=x.device)
    nearest = distance.masked_fill(diagonal | ~exists[:, None, :], torch.inf).amin(-1)
    # A segment of one token has no neighbour, and an infinite score would not compare with the -inf of padding.
    pick = nearest.nan_to_num(posinf=2.0).masked_fill(~exists, -torch.inf).argmax(-1)  # (S,)
    reach = torch.where(exists, torch.inf, -torch.inf)  # distance of each token to the picked set
    picks = []
    rows = torch.arange(len(counts), device=x.device)
    for _ in range(max(k)):
        picks.append(pick)
        reach = torch.minimum(reach, distance[rows, pick])
        reach[rows, pick] = -torch.inf
        pick = reach.argmax(-1)
    start = torch.tensor(offsets(counts)[:-1], device=x.device)
    chosen = torch.stack(picks, dim=1) + start[:, None]  # (S, max k), packed indices
    return chosen.flatten()[padded_index(k, x.device)].sort().values
