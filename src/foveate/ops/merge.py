"""Merging: which token is folded into which, and the weighted means that result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from foveate.ops.segments import offsets, padded_index, ranges, segment_mean, segment_sum, to_padded

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
    return strongest(similarities(features, counts), counts, r)


def similarities(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the cosines of even with odd tokens of each segment: ``(S, E, O)``, minus infinity where there is no such pair.

    Args:
        features: ``(N, D)``.
        counts: tokens per segment; ``E`` and ``O`` are half of the largest, the first of these rounded up.
    """
    x = to_padded(torch.nn.functional.normalize(features.float(), dim=-1), counts)
    return without_padding(x[:, 0::2] @ x[:, 1::2].transpose(1, 2), counts)


def without_padding(similarity: Tensor, counts: Sequence[int]) -> Tensor:
    """Put minus infinity into the cells ``(S, E, O)`` of pairs of an even and an odd token that a segment does not have."""
    lengths = torch.tensor(counts).to(similarity.device, non_blocking=True)[:, None, None]
    even, odd = (torch.arange(n, device=similarity.device) for n in similarity.shape[1:])
    missing = (2 * even[:, None] >= lengths) | (2 * odd + 1 >= lengths)
    return similarity.masked_fill(missing, -torch.inf)


def strongest(similarity: Tensor, counts: Sequence[int], r: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the ``r[s]`` most similar pairs of each segment, of which every even token has one, with its best odd token.

    Args:
        similarity: ``(S, E, O)``, of even with odd tokens, minus infinity where there is no such pair (`similarities`).
        counts, r: as for `bipartite_match`, which says what comes out.
    """
    if similarity.shape[2] == 0 or sum(r) == 0:
        empty = torch.empty(0, dtype=torch.long, device=similarity.device)
        return empty, empty
    best, partner = similarity.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    start = torch.tensor(offsets(counts)[:-1]).to(similarity.device, non_blocking=True)[:, None]
    width = similarity.shape[1]
    rows = ranges([i * width for i in range(len(r))], r, similarity.device)
    source = (2 * order + start).flatten()[rows]
    target = (2 * partner.gather(1, order) + 1 + start).flatten()[rows]
    return source, target


def similarity_flops(counts: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `similarities` of so many channels (2 per multiply-add)."""
    widest = max(counts, default=0)
    return 2 * len(counts) * ((widest + 1) // 2) * (widest // 2) * width


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
    x = to_padded(torch.nn.functional.normalize(features.float(), dim=-1), counts)
    unit = x.flatten(0, 1)[padded_index(counts, x.device)]
    if len(targets) == 0:
        return torch.zeros(len(features), dtype=torch.long, device=features.device)
    centre = to_padded(unit[targets], k)  # (S, max k, D)
    similarity = x @ centre.transpose(1, 2)
    available = torch.tensor(k, device=x.device)[:, None]
    missing = torch.arange(centre.shape[1], device=x.device) >= available
    choice = similarity.masked_fill(missing[:, None, :], -torch.inf).argmax(-1)  # (S, n)
    start = torch.tensor(offsets(k)[:-1], device=x.device)[:, None]
    assigned = torch.where(available > 0, choice + start, len(targets))
    assigned = assigned.flatten()[padded_index(counts, x.device)]
    assigned[targets] = torch.arange(len(targets), device=x.device)
    return assigned


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
    return weighted_mean(x, weight, group, k + 1)[:-1]
