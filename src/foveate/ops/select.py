"""Selectors choose which tokens of each segment survive, as packed indices in ascending order; and ranks of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from foveate.ops.segments import offsets, padded_index, ranges, segment_ids, to_padded, within


def top_k(score: Tensor, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """Return the ``k[s]`` highest scores of each segment; ties go to the earlier token.

    Args:
        score: ``(N,)``, higher is better.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    return best_first(score, counts)[ranges(offsets(counts)[:-1], k, score.device)].sort().values


def best_first(score: Tensor, counts: Sequence[int]) -> Tensor:
    """All tokens, segment after segment, in each from the highest score to the lowest: ``(N,)`` packed indices.

    Of equal scores the earlier token comes first. The ``k[s]`` best of each segment in this order, or those that come next, are
    ``best_first(score, counts)[ranges(starts, k)]`` (`foveate.ops.segments.ranges`).

    Args:
        score: ``(N,)``, higher is better.
        counts: tokens per segment, sums to ``N``.
    """
    by_score = torch.argsort(score, descending=True, stable=True)
    return by_score[torch.argsort(segment_ids(counts, score.device)[by_score], stable=True)]


def rank_within(score: Tensor, counts: Sequence[int]) -> Tensor:
    """The rank of each token in its segment, 0 for the highest score: ``(N,)`` int64; arguments are those of `best_first`."""
    place = within(counts, score.device)
    return torch.empty_like(place).index_copy(0, best_first(score, counts), place)


def rank_in_groups(score: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """The rank of each token among those of its group, 0 for the highest score and of equal ones the earlier: ``(N,)`` int64.

    Args:
        score: ``(N,)``, higher is better.
        group: ``(N,)`` int64 in ``[0, n_groups)``; members need not stand together.
        n_groups: how many there may be.
    """
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    size = torch.zeros(n_groups, dtype=torch.long, device=group.device).index_add_(0, group, torch.ones_like(group))
    place = torch.arange(len(group), device=group.device) - (size.cumsum(0) - size)[group[order]]
    return torch.empty_like(group).index_copy(0, order, place)


def best_of_groups(score: Tensor, group: Tensor, k: Sequence[int]) -> Tensor:
    """Return the ``k[g]`` highest scores of each group, at most its members: ``(sum(k),)`` packed indices, ascending."""
    quota = torch.tensor(k, dtype=torch.long).to(score.device, non_blocking=True)
    chosen = rank_in_groups(score, group, len(k)) < quota[group]
    return top_k(chosen.long(), (len(score),), (sum(k),))


def complement(chosen: Tensor, n: int) -> Tensor:
    """Return the tokens that are not ``chosen``: ``(n - len(chosen),)`` int64, ascending.

    Args:
        chosen: packed indices, each of them once.
        n: tokens in all.
    """
    free = torch.ones(n, dtype=torch.bool, device=chosen.device).index_fill(0, chosen, False)
    return torch.argsort((~free).to(torch.uint8), stable=True)[: n - len(chosen)]  # how many is known: no waiting


def rank(chosen: Tensor, n: int) -> Tensor:
    """The place of each of ``n`` tokens in ``chosen (K,)``, which names none twice: ``(n,)`` int64; ``K``: it is not there."""
    nowhere = torch.full((n,), len(chosen), device=chosen.device)
    return nowhere.index_copy(0, chosen, torch.arange(len(chosen), device=chosen.device))


def stride(
    counts: Sequence[int],
    k: Sequence[int],
    device: torch.device | str = "cpu",
    place: Literal["first", "middle", "last"] = "middle",
) -> Tensor:
    """``k[s]`` evenly spaced tokens of each segment: one of each of ``k`` groups as equal as can be.

    Group ``i`` is ``floor(i * n / k)`` up to, but without, ``floor((i + 1) * n / k)``. Its ``first`` or its ``last`` token
    stays, or the ``middle`` one: ``floor((i + 1/2) * n / k)``.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    segment = segment_ids(k)
    n, kept = (torch.tensor(lengths, dtype=torch.long)[segment] for lengths in (counts, k))
    start = torch.tensor(offsets(counts)[:-1], dtype=torch.long)[segment]
    rank = ranges([0] * len(k), k)
    twice = {"first": 2 * rank, "middle": 2 * rank + 1, "last": 2 * rank + 2}[place]
    chosen = (twice * n) // (2 * kept) - int(place == "last")
    return (start + chosen).to(device, non_blocking=True)


def nested(level: Tensor, counts: Sequence[int], k: Sequence[int], n_levels: int) -> Tensor:
    """Return the ``k[s]`` tokens of the highest levels of each segment; of the level that fits in part, evenly spaced ones.

    Args:
        level: ``(N,)`` int64, 0 to ``n_levels - 1``.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.
        n_levels: of all segments.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    segment = segment_ids(counts, level.device)
    group = segment * n_levels + level
    size = torch.zeros(len(counts) * n_levels, dtype=torch.long, device=level.device)
    size.index_add_(0, group, torch.ones_like(group))
    by_group = torch.argsort(group, stable=True)
    rank = torch.empty_like(group)
    rank[by_group] = torch.arange(len(group), device=level.device) - (size.cumsum(0) - size)[group[by_group]]

    per_level = size.view(-1, n_levels)
    above = per_level.flip(1).cumsum(1).flip(1) - per_level  # tokens of the segment on higher levels
    budget = torch.tensor(k, dtype=torch.long).to(level.device, non_blocking=True)
    room = (budget[:, None] - above).clamp(min=0).flatten()[group]  # survivors that this level may have
    members = size[group]
    # The last token of each of `room` groups: r + 1 = floor((j + 1) * members / room) for some j.
    group_end = -(-(rank + 1) * room // members)
    is_last = group_end * members < (rank + 2) * room
    chosen = (room >= members) | is_last
    return top_k(2 * level + chosen, counts, k)


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
