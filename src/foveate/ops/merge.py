"""Merging: which token is folded into which, and the weighted means that result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from foveate.ops.pairs import Pairs, best_column
from foveate.ops.segments import (
    alike,
    offsets,
    padded_index,
    padded_pairs,
    ranges,
    rows_of,
    segment_mean,
    segment_sum,
    to_padded,
)
from foveate.ops.select import complement, rank_in_groups, top_k

_CELLS = 1 << 24  # similarities held at once (64 MB)

#: What becomes of a group: the mean of its members, each counting as often as it has ``sizes``; their plain ``mean``; their
#: ``sum``; or the survivor plus the mean of the others.
Rule = Literal["sizes", "mean", "sum", "survivor+mean"]


def bipartite_match(features: Tensor, counts: Sequence[int], r: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching (ToMe): the ``r[s]`` most similar even tokens of a segment each pick an odd token.

    Args:
        features: ``(N, D)``; similarity is the cosine.
        counts: tokens per segment.
        r: merges per segment, ``r[s] <= counts[s] // 2``.

    Returns:
        ``(source, target)``, packed indices ``(sum(r),)`` each; sources are distinct and are never targets.
    """
    if sum(r) == 0:
        empty = torch.empty(0, dtype=torch.long, device=features.device)
        return empty, empty
    found = []
    for members in alike(counts):
        rows, merges = rows_of(members, counts, features.device), [r[s] for s in members]
        if sum(merges):
            few = [counts[s] for s in members]
            pairs = _pairs(*_partners(features[rows], few), few, merges)
            found.append([rows[each] for each in pairs])
    source, target = (torch.cat(each) for each in zip(*found))
    return source, target


def match_nearer(features: Tensor, counts: Sequence[int], distance: float) -> tuple[Tensor, Tensor, list[int]]:
    """Match every even token that is nearer than ``distance`` to its best odd token, in each segment half of all at most.

    It asks the device how many these are. Its FLOPs are those of `bipartite_match` with as many merges as can be.

    Args:
        features, counts: as for `bipartite_match`.
        distance: 1 minus the cosine.

    Returns:
        ``(source, target)`` as of `bipartite_match`, and the merges per segment.
    """
    found, merges = [[torch.empty(0, dtype=torch.long, device=features.device)] * 2], [0] * len(counts)
    for members in alike(counts):
        few = [counts[s] for s in members]
        if max(few, default=0) < 2:
            continue
        rows = rows_of(members, counts, features.device)
        best, partner = _partners(features[rows], few)
        near = [min(pairs, n // 2) for pairs, n in zip((1 - best < distance).sum(-1).tolist(), few)]
        found.append([rows[each] for each in _pairs(best, partner, few, near)])
        for segment, pairs in zip(members, near):
            merges[segment] = pairs
    source, target = (torch.cat(each) for each in zip(*found))
    return source, target, merges


def distances_to_partners(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Return 1 minus the cosine of each even token with its best odd one, those that `match_nearer` compares: ``(M,)``.

    It asks the device how many these are. Arguments are those of `bipartite_match`.
    """
    found = [torch.empty(0, device=features.device)]
    for members in alike(counts):
        few = [counts[s] for s in members]
        if max(few, default=0) >= 2:
            best, _ = _partners(features[rows_of(members, counts, features.device)], few)
            found.append(1 - best[best > -torch.inf])
    return torch.cat(found)


def _partners(features: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """For each even token of segments of like lengths, the cosine of its best odd token and which one that is: ``(S, E)``
    each, minus infinity where there is no such token."""
    x = to_padded(torch.nn.functional.normalize(features.float(), dim=-1), counts)
    lengths = torch.tensor(counts).to(x.device, non_blocking=True)
    even, odd = x[:, 0::2], x[:, 1::2]
    missing = torch.arange(odd.shape[1], device=x.device) * 2 + 1 >= lengths[:, None]
    best, partner = _best(even, odd, missing)
    absent = torch.arange(even.shape[1], device=x.device) * 2 >= lengths[:, None]
    return best.masked_fill(absent, -torch.inf), partner


def _pairs(best: Tensor, partner: Tensor, counts: Sequence[int], r: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the ``r[s]`` even tokens of each segment whose partners are best, and these: packed indices."""
    order = best.argsort(dim=-1, descending=True, stable=True)
    start = torch.tensor(offsets(counts)[:-1]).to(best.device, non_blocking=True)[:, None]
    width = best.shape[1]
    rows = ranges([i * width for i in range(len(r))], r, best.device)
    source = (2 * order + start).flatten()[rows]
    target = (2 * partner.gather(1, order) + 1 + start).flatten()[rows]
    return source, target


def strongest(
    values: Pairs, score: Callable[[Tensor, Tensor, Tensor], Tensor], counts: Sequence[int], r: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the ``r[s]`` best pairs of each segment, of which every even token has one, with its best odd token.

    Args:
        values: of all pairs.
        score: says how good pairs are, ``(S, r, n)``, by their values, rows and columns (`foveate.ops.pairs.Question`).
        counts, r: as for `bipartite_match`, which says what comes out.
    """

    def partner(value: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        best, target = torch.full_like(value[:, :, 0], -torch.inf), row.clone()
        even, odd = row[:, ::2], column[:, 1::2]
        if odd.shape[1]:
            of_even = best_column(score(value[:, ::2, 1::2], even, odd), (odd < values.n)[:, None], odd)
            best[:, ::2], target[:, ::2] = of_even
        return best, target

    best, target = values.ask(partner)
    source = top_k(best, counts, r)
    return source, target[source]


def _best(x: Tensor, others: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of ``x (S, n, D)`` the most similar of ``others (S, m, D)`` that is not ``missing (S, m)``, the first one of
    several: its similarity and its index, ``(S, n)`` each. So many of the similarities are held as memory is set aside for.
    """
    step = max(1, _CELLS // max(1, missing.numel()))
    parts = [
        (part @ others.transpose(1, 2)).masked_fill_(missing[:, None, :], -torch.inf).max(-1)
        for part in x.split(step, dim=1)
    ]
    return torch.cat([part.values for part in parts], 1), torch.cat([part.indices for part in parts], 1)


def bipartite_flops(counts: Sequence[int], r: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `bipartite_match` (2 per multiply-add)."""
    pairs = 0
    for members in alike(counts) if sum(r) else []:
        widest = max(counts[s] for s in members)
        pairs += len(members) * ((widest + 1) // 2) * (widest // 2) if sum(r[s] for s in members) else 0
    return 2 * pairs * width


def nearest_target(features: Tensor, counts: Sequence[int], targets: Tensor, k: Sequence[int]) -> Tensor:
    """Return the most similar target of the same segment, for every token.

    Args:
        features: ``(N, D)``; similarity is the cosine.
        counts: tokens per segment.
        targets: ``(sum(k),)`` ascending packed indices.
        k: targets per segment.

    Returns:
        ``(N,)`` int64: index into ``targets``; ``len(targets)`` where the segment has no target. A target is its own
        nearest target.
    """
    device = features.device
    if len(targets) == 0:
        return torch.zeros(len(features), dtype=torch.long, device=device)
    groups = alike(counts, k)
    if len(groups) == 1:
        return _nearest_target(features, counts, targets, k)
    assigned = torch.full((len(features),), len(targets), device=device)
    for members in groups:
        rows, own = rows_of(members, counts, device), rows_of(members, k, device)
        if not len(own):
            continue
        here = torch.empty_like(assigned).index_copy_(0, rows, torch.arange(len(rows), device=device))
        few = [counts[s] for s in members], here[targets[own]], [k[s] for s in members]
        found = _nearest_target(features[rows], *few)
        assigned[rows] = torch.nn.functional.pad(own, (0, 1), value=len(targets))[found]
    return assigned


def _nearest_target(features: Tensor, counts: Sequence[int], targets: Tensor, k: Sequence[int]) -> Tensor:
    """Find what `nearest_target` says, in segments of like lengths, at least one of which has a target."""
    x = to_padded(torch.nn.functional.normalize(features.float(), dim=-1), counts)
    unit = x.flatten(0, 1)[padded_index(counts, x.device)]
    centre = to_padded(unit[targets], k)  # (S, max k, D)
    available = torch.tensor(k).to(x.device, non_blocking=True)[:, None]
    missing = torch.arange(centre.shape[1], device=x.device) >= available
    _, choice = _best(x, centre, missing)  # (S, n)
    start = torch.tensor(offsets(k)[:-1]).to(x.device, non_blocking=True)[:, None]
    assigned = torch.where(available > 0, choice + start, len(targets))
    assigned = assigned.flatten()[padded_index(counts, x.device)]
    assigned[targets] = torch.arange(len(targets), device=x.device)
    return assigned


def products(counts: Sequence[int], k: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix product in `nearest_target` (2 per multiply-add)."""
    return 2 * padded_pairs(counts, k) * width


def chained(order: Tensor, steps: Sequence[Tensor], rank: Tensor) -> Tensor:
    """Return the group of each token after merging several times, for tokens that are sorted before and after it.

    Args:
        order: ``(N,)`` the token that comes first, second, ... when merging begins.
        steps: for each merging ``(n,)`` the group of each of what is there then.
        rank: ``(K,)`` the last group that comes first, second, ... when it is over.

    Returns:
        ``(N,)`` int64 in ``[0, K)``.
    """
    group = torch.arange(len(order), device=order.device)
    for step in steps:
        group = step[group]
    return torch.empty_like(group).index_copy(0, order, rank.argsort()[group])


def weighted_mean(x: Tensor, weight: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """``sum(w x) / sum(w)`` by group.

    Args:
        x: ``(N, ...)``.
        weight: ``(N,)`` positive.
        group: ``(N,)`` int64 in ``[0, n_groups)``; every group has a member.

    Returns:
        ``(n_groups, ...)`` in the dtype of ``x``; the sums are taken in fp32 at least.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    column = (-1, *(1,) * (x.dim() - 1))
    total = segment_sum(wide * weight.to(wide.dtype).view(column), group, n_groups)
    mass = segment_sum(weight.to(wide.dtype), group, n_groups)
    return (total / mass.view(column)).to(x.dtype)


def blended(x: Tensor, centre: Tensor, share: float) -> Tensor:
    """Return ``(N, C)`` with each centre as ``share`` of itself and the rest the mean of the others that join it.

    Args:
        x: ``(N, C)``.
        centre: ``(N,)`` packed indices, which each token joins, a centre itself; ``N``: none.
        share: from 0 to 1.
    """
    n = len(x)
    others = torch.where(centre == torch.arange(n, device=x.device), n, centre)
    mean = segment_mean(x, others, n + 1)[:-1]
    joined = segment_sum(torch.ones_like(others), others, n + 1)[:-1] > 0
    return torch.where(joined[:, None], share * x + (1 - share) * mean, x)


def one_by_one(x: Tensor, keep: Tensor, group: Tensor) -> Tensor:
    """Return the survivors after each other member of their groups, in order, has been averaged into them: ``(K, C)``.

    Of ``m`` others the last one weighs a half, the one before a quarter, and so on, and the survivor as much as the first.

    Args:
        x: ``(N, C)``.
        keep: ``(K,)`` packed indices of the survivors.
        group: ``(N,)`` int64 in ``[0, K]``; the members of group ``K`` are dropped, each other group has its survivor.
    """
    k, index = len(keep), torch.arange(len(x), device=x.device)
    stays = torch.zeros_like(group, dtype=torch.bool).index_fill(0, keep, True)
    others = segment_sum((~stays).long(), group, k + 1)[group]
    turn = rank_in_groups(torch.where(stays, 1, -index), group, k + 1) - 1  # 0 for the first of the others
    weight = torch.exp2((turn.clamp(min=0) - others).float())
    return weighted_mean(x, weight, group, k + 1)[:-1]


def merged(x: Tensor, sizes: Tensor, keep: Tensor, group: Tensor, rule: Rule) -> Tensor:
    """Return the values of the survivors ``keep (K,)`` once each token has joined its group.

    Args:
        x: ``(N, ...)``.
        sizes: ``(N,)`` positive, the weights of the rule ``sizes``.
        keep: packed indices.
        group: ``(N,)`` int64 in ``[0, K]``; the members of group ``K`` are dropped, each other group has a member.
        rule: see `Rule`.

    Returns:
        ``(K, ...)`` in the dtype of ``x``; sums are taken in fp32 at least.
    """
    k = len(keep)
    if rule == "survivor+mean":
        others = group.index_fill(0, keep, k)
        return x[keep] + segment_mean(x, others, k + 1)[:-1]
    if rule == "sum":
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return segment_sum(wide, group, k + 1)[:-1].to(x.dtype)
    weight = sizes if rule == "sizes" else torch.ones_like(sizes)
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if k > 0 and 4 * (len(x) - k) <= len(x) and not learns:  # (each copy of a sum would get the gradient of all)
        return _with_few(x, weight, keep, group)
    return weighted_mean(x, weight, group, k + 1)[:-1]


def _with_few(x: Tensor, weight: Tensor, keep: Tensor, group: Tensor) -> Tensor:
    """Weighted means ``(K, ...)`` of groups where few tokens join: most survivors are copied, not summed.

    In a tower that merges a little in every block this is most of what merging costs.
    """
    k, column = len(keep), (-1, *(1,) * (x.dim() - 1))
    wide = torch.promote_types(x.dtype, torch.float32)
    join = complement(keep, len(x))  # (M,)
    place = group[join]  # the survivor that each of these joins; K: none
    mass = segment_sum(weight.to(wide), group, k + 1)
    # Of those that join one survivor, one stands for the sum of all: which one does not matter.
    place_of_sum = torch.zeros(k + 1, dtype=torch.long, device=x.device)
    place_of_sum = place_of_sum.index_copy(0, place, torch.arange(len(join), device=x.device))[place]
    joined = segment_sum(x[join].to(wide) * weight[join].to(wide).view(column), place_of_sum, len(join))
    padded = torch.cat([keep, keep[:1]])  # a row for those that are dropped, which nobody sees
    survivor = padded[place]
    total = x[survivor].to(wide) * weight[survivor].to(wide).view(column) + joined[place_of_sum]
    mean = total / mass[place].view(column)
    return x[padded].index_copy(0, place, mean.to(x.dtype))[:-1]
