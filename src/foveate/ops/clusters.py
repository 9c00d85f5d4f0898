"""Clusters around density peaks: a token is a centre if it is dense and far from what is denser. Segment by segment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.ops import pairs, select
from foveate.ops.pairs import Pairs
from foveate.ops.segments import offsets, segment_ids, segment_max, segment_mean, segment_sum

#: questions that clustering asks about the distances: how dense a token is, which denser one is near, which centre
QUESTIONS = 3


def distances(features: Tensor, counts: Sequence[int], group: Tensor | None = None, unit: float = 1.0) -> Pairs:
    """Euclidean distances between the tokens of a segment, in fp32 at least; infinite where there is no token.

    Args:
        features: ``(N, C)``.
        counts: tokens per segment, sums to ``N``.
        group: ``(N,)`` int64 from 0 on; tokens of different groups are infinitely far apart. None: all of a segment are of one.
        unit: the distance that counts as 1.
    """
    x = _centred(features, counts)
    square = pad(x.square().sum(-1), (0, 1))
    group = pad(segment_ids(counts, x.device) if group is None else group, (0, 1), value=-1)

    def apart(product: Tensor, row: Tensor, column: Tensor) -> Tensor:
        away = (
            (square[row][:, :, None] + square[column][:, None]).sub_(product.mul_(2)).clamp_(min=0).sqrt_().div_(unit)
        )
        away.masked_fill_(row[:, :, None] == column[:, None], 0)
        return away.masked_fill_(group[row][:, :, None] != group[column][:, None], torch.inf)

    return Pairs(x, counts, apart)


def products(counts: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products of clustering (2 per multiply-add)."""
    return pairs.products(counts, width, QUESTIONS)


def density_within(apart: Pairs, features: Tensor, counts: Sequence[int], reach: float) -> Tensor:
    """Sum of ``exp(-(d / r)^2)`` over all tokens of the segment, for each one: ``(N,)``.

    Args:
        apart: of `distances` between these features.
        features: ``(N, C)``.
        counts: tokens per segment, sums to ``N``.
        reach: r, in units of the root of the segment's mean squared distance; more than 0.
    """
    segment = segment_ids(counts, features.device)
    # The mean over all pairs is twice the mean squared distance from the centre.
    mean = 2 * segment_mean(_centred(features, counts).square().sum(-1), segment, len(counts))
    scale = pad((mean * reach**2).clamp(min=torch.finfo(mean.dtype).tiny)[segment], (0, 1), value=1.0)
    (density,) = apart.ask(lambda d, row, column: (torch.exp(-d.square() / scale[row][:, :, None]).sum(-1),))
    return density


def density_of_nearest(apart: Tensor, k: Tensor, most: int) -> Tensor:
    """``exp`` of minus the mean squared distance to the nearest ``k (S, r)`` tokens of each one, itself among them: ``(S, r)``.

    Args:
        apart: ``(S, r, n)``, of `distances`; those that are infinite are nobody's neighbours.
        k: ``(S, r)`` int64, as many as it has at the most.
        most: the largest k there may be.
    """
    wanted = min(most, apart.shape[-1])
    near = torch.topk(apart, wanted, dim=-1, largest=False).values
    near = near.masked_fill(torch.arange(wanted, device=apart.device) >= k[..., None], 0)
    return torch.exp(-near.square().sum(-1) / k.clamp(min=1))


def to_denser(
    apart: Pairs, density: Tensor, place: Tensor | None = None, reach: float = torch.inf
) -> tuple[Tensor, Tensor]:
    """Find the nearest denser token of each one; of equally dense ones the earlier is the denser.

    Args:
        apart: of `distances`.
        density: ``(N,)``.
        place: ``(N, 2)``, where each token is; None: nobody asks.
        reach: how far from its own place one is found.

    Returns:
        its distance, packed ``(N,)``, infinite where there is none; and packed indices ``(N,)``, there the token's own.
    """
    dense = pad(density, (0, 1), value=-torch.inf)
    places = None if place is None else pad(place, (0, 0, 0, 1))

    def nearest(away: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        here, there = dense[row][:, :, None], dense[column][:, None]
        denser = (there > here) | ((there == here) & (column[:, None] < row[:, :, None]))
        if places is not None:
            from_here = places[row][:, :, None] - places[column][:, None]
            denser &= torch.linalg.vector_norm(from_here, dim=-1) <= reach
        return pairs.best_column(away, denser, column, largest=False)

    away, link = apart.ask(nearest)
    return away, torch.where(away.isinf(), torch.arange(len(away), device=away.device), link)


def peaks(away: Tensor, density: Tensor, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """Return the ``k[s]`` tokens of each segment where density times ``away`` is largest: ``(sum(k),)`` packed, ascending.

    Args:
        away: ``(N,)``, of `to_denser`.
        density: ``(N,)``.
        counts: tokens per segment, sums to ``N``.
        k: centres per segment.
    """
    return select.top_k(away * density.clamp(min=torch.finfo(density.dtype).tiny), counts, k)


def nearest_centre(apart: Pairs, centres: Tensor) -> Tensor:
    """Return the nearest of the ``centres`` in the same segment for each token, ``(N,)`` packed indices: ``N`` if it has none.

    Args:
        apart: of `distances`.
        centres: ``(K,)`` packed indices; each is its own.
    """
    is_centre = torch.zeros(apart.n + 1, dtype=torch.bool, device=centres.device).index_fill(0, centres, True)
    away, nearest = apart.ask(
        lambda away, row, column: pairs.best_column(away, is_centre[column][:, None], column, largest=False)
    )
    return torch.where(away.isinf(), apart.n, nearest).index_copy(0, centres, centres)


def followed(link: Tensor, centres: Tensor) -> Tensor:
    """Follow the links of tokens to denser ones, up to a centre or an end: ``(N,)`` packed indices.

    Args:
        link: ``(N,)`` packed indices, of `to_denser`.
        centres: ``(K,)`` packed indices, which links do not leave.
    """
    end = link.index_copy(0, centres, centres)
    for _ in range(max(len(link) - 1, 0).bit_length()):  # each time twice as far
        end = end[end]
    return end


def around_peaks(
    features: Tensor,
    counts: Sequence[int],
    group: Tensor,
    n_centres: Sequence[int],
    neighbours: int,
    *,
    up_to_centres: bool = True,
) -> tuple[Tensor, Tensor]:
    """Find the centres of each group of tokens in a segment, by the density of a few neighbours, and whom each token joins.

    Args:
        features: ``(N, C)``; distances are per channel.
        counts: tokens per segment, sums to ``N``.
        group: ``(N,)`` int64; a group is in one segment, but for those without centres.
        n_centres: per group, at most its members.
        neighbours: that a density is of, at most as many as a group has members.
        up_to_centres: nor more than it has centres.

    Returns:
        the centres, packed indices ``(sum(n_centres),)``, ascending; and ``(N,)`` the nearest one of its group for each token,
        ``N`` if it has none.
    """
    apart = distances(features, counts, group, unit=features.shape[-1] ** 0.5)
    wanted = torch.tensor(n_centres, dtype=torch.long).to(group.device, non_blocking=True)
    limit = wanted if up_to_centres else segment_sum(torch.ones_like(group), group, len(n_centres))
    near = pad(limit.clamp(max=neighbours)[group], (0, 1))
    most = min(neighbours, max(n_centres, default=0)) if up_to_centres else neighbours

    def density_and_reach(away: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        return density_of_nearest(away, near[row], most), away.masked_fill(away.isinf(), 0).amax(-1)

    density, farthest = apart.ask(density_and_reach)
    away, _ = to_denser(apart, density)
    widest = segment_max(farthest, group, len(n_centres))[group]
    score = torch.where(away.isinf(), widest, away) * density
    centres = select.best_of_groups(score, group, n_centres)
    return centres, nearest_centre(apart, centres)


def thin(
    cluster: Tensor, score: Tensor, counts: Sequence[int], n_clusters: Sequence[int], k: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Leave ``k[s]`` tokens of each segment: of each cluster the best ones, and one into which the others merge.

    Where there are more clusters than ``k[s]``, those with the lowest sums are one. The places that are left when each has one
    are shared out by size, less 1, to the nearest count. If these are too few, the clusters with the highest sums that can have
    one more do; if too many, those with the lowest have one less.

    Args:
        cluster: ``(N,)`` int64, counted over all segments; none is empty.
        score: ``(N,)``, higher is better.
        counts, n_clusters, k: tokens, clusters and survivors per segment.

    Returns:
        ``keep (sum(k),)`` packed indices, ascending; ``group (N,)`` what each token becomes part of, an index into ``keep``, or
        ``sum(k)`` where its segment keeps none; ``alone (N,)`` bool, which survive as they are. The one into which others merge
        is in the middle of them.
    """
    device, n, places = score.device, len(score), [min(a, b) for a, b in zip(n_clusters, k)]
    facts = [[kept - 1 for kept in k], offsets(places)[:-1], [a - b for a, b in zip(k, places)]]
    facts.append([max(a - b, 1) for a, b in zip(counts, places)])
    last, first, free, members = torch.tensor(facts, dtype=torch.long).to(device, non_blocking=True)
    of, total = segment_ids(n_clusters, device), segment_sum(score, cluster, sum(n_clusters))
    slot = torch.minimum(select.rank_within(total, n_clusters), last[of])
    group = torch.where(slot < 0, sum(places), first[of] + slot)[cluster]

    size = torch.zeros(sum(places) + 1, dtype=torch.long, device=device).index_add_(0, group, torch.ones_like(group))
    of = segment_ids(places, device)
    claim = (size[:-1] - 1) * free[of]
    quota = (2 * claim + members[of]) // (2 * members[of])
    short = (free - segment_sum(quota, of, len(counts)))[of]
    able = torch.where(short > 0, quota < size[:-1] - 1, quota > 0)
    turn = torch.arange(len(quota), device=device) * -short.sign()  # the first groups have the highest sums
    turn = select.rank_within(torch.where(able, turn, -n - 1), places)
    quota = torch.nn.functional.pad(quota + torch.where(turn < short.abs(), short.sign(), 0), (0, 1))
    alone = (select.rank_in_groups(score, group, len(size)) < quota[group]) & (group < sum(places))
    order = torch.where(alone, -n, -torch.arange(n, device=device))
    middle = select.rank_in_groups(order, group, len(size)) == ((size - quota) // 2)[group]
    middle &= ~alone & (group < sum(places))
    keep = select.top_k((alone | middle).long(), counts, k)
    index = torch.arange(n, device=device)
    into = torch.full_like(size, -1).scatter_reduce(0, group, torch.where(middle, index, -1), "amax")
    survivor = torch.nn.functional.pad(select.rank(keep, n), (0, 1), value=len(keep))  # the last one: none
    return keep, survivor[torch.where(alone, index, into[group])], alone


def _centred(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Features around the mean of their segment, in fp32 at least: a common part costs digits of squares."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    segment = segment_ids(counts, features.device)
    return wide - segment_mean(wide, segment, len(counts))[segment]
