"""Selectors choose which tokens of each segment survive, as packed indices in ascending order; and ranks of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from foveate.ops.segments import (
    alike,
    gram,
    gram_pairs,
    offsets,
    padded_index,
    ranges,
    rows_of,
    segment_ids,
    to_padded,
    within,
)

_CELLS = 1 << 26  # distances held at once (256 MB), or so many times as much as the features themselves
_TIMES = 8


def top_k(score: Tensor, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """Return the ``k[s]`` highest scores of each segment; ties go to the earlier token.

    Args:
        score: ``(N,)``, higher is better.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    if len(set(counts)) == len(set(k)) == 1:
        start = torch.arange(0, len(score), max(1, counts[0]), device=score.device)[:, None]
        best = score.reshape(len(counts), -1).argsort(dim=1, descending=True, stable=True)[:, : k[0]]
        return (best.sort(dim=1).values + start).flatten() if counts[0] else best.flatten()
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


def farthest_point(features: Tensor, counts: Sequence[int], k: Sequence[int], cells: int | None = None) -> Tensor:
    """Greedy max-min selection by cosine distance (farthest-point sampling), all segments at once.

    The first pick of a segment is the token whose nearest neighbour is farthest; each next pick is the token
    farthest from everything picked so far. Ties go to the earlier token.

    Args:
        features: ``(N, C)``.
        counts: tokens per segment.
        k: survivors per segment.
        cells: distances held at once, by default 64 million, or eight times as many as ``features`` has numbers; where all of
            them are more, those to a pick are computed when it is picked.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    if sum(k) == 0 or tuple(k) == tuple(counts):  # nothing to choose
        return torch.arange(sum(k), device=features.device)
    chosen = []
    for members in alike(counts):
        rows = rows_of(members, counts, features.device)
        own = [counts[s] for s in members], [k[s] for s in members]
        chosen.append(rows[_farthest(features[rows], *own, _held(own[0], features.shape[1], cells))])
    return torch.cat(chosen).sort().values


def _farthest(features: Tensor, counts: Sequence[int], k: Sequence[int], cells: int) -> Tensor:
    """Return the tokens that `farthest_point` picks of segments of like lengths: ``(sum(k),)``, segment after segment."""
    device = features.device
    if max(k) == 0:
        return torch.empty(0, dtype=torch.long, device=device)
    # A choice has no gradient, and without one the loop below may write into the same memory again and again.
    x = to_padded(torch.nn.functional.normalize(features.detach().float(), dim=-1), counts)  # (S, n, C)
    n_segments, n = x.shape[:2]
    there = torch.tensor(counts).to(device, non_blocking=True)[:, None]
    exists = torch.arange(n, device=device) < there  # (S, n)
    distance, nearest = _distances(x, exists, cells)
    # A segment of one token has no neighbour, and an infinite score would not compare with the -inf of padding.
    score = nearest.nan_to_num(posinf=2.0).masked_fill(~exists, -torch.inf)
    reach = torch.where(exists, torch.inf, -torch.inf)  # distance of each token to the picked set; of these -inf
    picks = torch.empty(max(k), n_segments, dtype=torch.long, device=device)
    first = torch.arange(n_segments, device=device) * n
    pick = torch.argmax(score, -1, out=picks[0])
    for following in picks[1:]:  # a few small operations each, as on a GPU each of them has to be launched
        at = pick + first
        row = _to_picked(x, pick, at) if distance is None else distance.index_select(0, at)
        torch.minimum(reach, row, out=reach)
        pick = torch.argmax(reach, -1, out=following)
    start = torch.tensor(offsets(counts)[:-1]).to(device, non_blocking=True)
    chosen = picks.T + start[:, None]  # (S, max k), packed indices
    return chosen.flatten()[padded_index(k, device)]


def farthest_point_flops(counts: Sequence[int], k: Sequence[int], width: int, cells: int | None = None) -> int:
    """Floating-point operations of the matrix products in `farthest_point` (2 per multiply-add)."""
    if sum(k) == 0 or tuple(k) == tuple(counts):
        return 0
    pairs = 0
    for members in alike(counts):
        few, picks = [counts[s] for s in members], max(k[s] for s in members)
        n, most = max(few), _held(few, width, cells)
        if picks and len(few) * n * n <= most:
            pairs += gram_pairs(few)
        elif picks:  # those to the picks once more
            step = max(1, most // (len(few) * n))
            ends = [min(start + step, n) for start in range(0, n, step)]
            pairs += len(few) * (sum((end - start) * end for start, end in zip([0, *ends], ends)) + (picks - 1) * n)
    return 2 * pairs * width


def _held(counts: Sequence[int], width: int, cells: int | None) -> int:
    """How many distances are held at most: memory grows with the tokens, not with their square."""
    return max(_CELLS, _TIMES * len(counts) * max(counts) * width) if cells is None else cells


def _distances(x: Tensor, exists: Tensor, cells: int) -> tuple[Tensor | None, Tensor]:
    """Cosine distances ``(S * n, n)`` of ``x (S, n, C)`` to each other, -inf to themselves, or None where these are more than
    ``cells``; and those to the nearest neighbour that ``exists (S, n)``, as ``(S, n)``.
    """
    n_segments, n = exists.shape
    if n_segments * n * n <= cells:
        distance = gram(x).neg_().add_(1)
        distance.diagonal(0, 1, 2).fill_(torch.inf)
        nearest = distance.masked_fill(~exists[:, None], torch.inf).amin(-1)
        distance.diagonal(0, 1, 2).fill_(-torch.inf)
        return distance.flatten(0, 1), nearest
    nearest, step = x.new_full((n_segments, n), torch.inf), max(1, cells // (n_segments * n))
    for start in range(0, n, step):  # each with those up to it: of two tokens that are near, both are told
        end = min(start + step, n)
        part = (x[:, start:end] @ x[:, :end].transpose(1, 2)).neg_().add_(1)
        part.diagonal(start, 1, 2).fill_(torch.inf)
        part = part.masked_fill_(~exists[:, None, :end], torch.inf).masked_fill_(~exists[:, start:end, None], torch.inf)
        nearest[:, start:end] = part.amin(-1)
        nearest[:, :start] = torch.minimum(nearest[:, :start], part[:, :, :start].amin(1))
    return None, nearest


def _to_picked(x: Tensor, pick: Tensor, at: Tensor) -> Tensor:
    """Cosine distances ``(S, n)`` to the token ``pick (S,)`` of each segment, -inf to itself; ``at`` is its row of all."""
    picked = x.flatten(0, 1).index_select(0, at)
    row = torch.bmm(x, picked[:, :, None])[..., 0].neg_().add_(1)
    return row.scatter_(1, pick[:, None], -torch.inf)
