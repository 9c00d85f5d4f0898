"""Clusters around density peaks: a token is a centre if it is dense and far from what is denser. Segment by segment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops import select
from foveate.ops.segments import offsets, padded_index, segment_ids, segment_max, segment_mean, segment_sum, to_padded


def distances(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Euclidean distances between the tokens of a segment: ``(S, n, n)`` fp32 at least, infinite where there is no token."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    segment = segment_ids(counts, features.device)
    x = to_padded(wide - segment_mean(wide, segment, len(counts))[segment], counts)  # a common part costs digits
    square = x.square().sum(-1)
    apart = (square[:, :, None] + square[:, None] - 2 * x @ x.transpose(1, 2)).clamp(min=0).sqrt()
    apart = apart.masked_fill(torch.eye(x.shape[1], dtype=torch.bool, device=x.device), 0)
    exists = _exists(apart, counts)
    return apart.masked_fill(~(exists[:, :, None] & exists[:, None]), torch.inf)


def products(counts: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `distances` (2 per multiply-add)."""
    return 2 * len(counts) * max(counts, default=0) ** 2 * width


def density_within(apart: Tensor, counts: Sequence[int], reach: float) -> Tensor:
    """Sum of ``exp(-(d / r)^2)`` over all tokens of the segment, for each one: ``(S, n)``.

    Args:
        apart: of `distances`.
        counts: tokens per segment.
        reach: r, in units of the root of the segment's mean squared distance; more than 0.
    """
    pairs = torch.tensor([max(n, 1) ** 2 for n in counts], dtype=apart.dtype).to(apart.device, non_blocking=True)
    mean = apart.masked_fill(apart.isinf(), 0).square().sum((1, 2)) / pairs
    return torch.exp(-apart.square() / (mean * reach**2).clamp(min=torch.finfo(mean.dtype).tiny)[:, None, None]).sum(-1)


def density_of_nearest(apart: Tensor, k: Tensor, most: int) -> Tensor:
    """``exp`` of minus the mean squared distance to the nearest ``k (S, n)`` tokens of each one, itself among them: ``(S, n)``.

    Args:
        apart: of `distances`; those that are infinite are nobody's neighbours.
        k: ``(S, n)`` int64, as many as it has at the most.
        most: the largest k there may be.
    """
    wanted = min(most, apart.shape[-1])
    near = torch.topk(apart, wanted, dim=-1, largest=False).values
    near = near.masked_fill(torch.arange(wanted, device=apart.device) >= k[..., None], 0)
    return torch.exp(-near.square().sum(-1) / k.clamp(min=1))


def to_denser(
    apart: Tensor, density: Tensor, counts: Sequence[int], allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest denser token of each one; of equally dense ones the earlier is the denser.

    Args:
        apart: of `distances`.
        density: ``(S, n)``.
        allowed: ``(S, n, n)`` bool, which ones may be found; None: all of the segment.

    Returns:
        its distance, packed ``(N,)``, infinite where there is none; and packed indices ``(N,)``, there the token's own.
    """
    earlier = torch.ones_like(apart[:1], dtype=torch.bool).tril(-1)
    denser = (density[:, None] > density[:, :, None]) | ((density[:, None] == density[:, :, None]) & earlier)
    denser = denser if allowed is None else denser & allowed
    away, nearest = apart.masked_fill(~denser, torch.inf).min(-1)
    rows, segment = padded_index(counts, apart.device), segment_ids(counts, apart.device)
    away, nearest = away.flatten()[rows], nearest.flatten()[rows]
    start = torch.tensor(offsets(counts)[:-1]).to(apart.device, non_blocking=True)[segment]
    return away, torch.where(away.isinf(), torch.arange(len(away), device=apart.device), nearest + start)


def peaks(away: Tensor, density: Tensor, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """Return the ``k[s]`` tokens of each segment where density times ``away`` is largest: ``(sum(k),)`` packed, ascending.

    Args:
        away: ``(N,)``, of `to_denser`.
        density: ``(S, n)``.
        counts: tokens per segment, sums to ``N``.
        k: centres per segment.
    """
    dense = density.flatten()[padded_index(counts, density.device)].clamp(min=torch.finfo(density.dtype).tiny)
    return select.top_k(away * dense, counts, k)


def nearest_centre(apart: Tensor, counts: Sequence[int], centres: Tensor) -> Tensor:
    """Return the nearest of the ``centres`` in the same segment for each token, ``(N,)`` packed indices: ``N`` if it has none.

    Args:
        apart: of `distances`.
        counts: tokens per segment, sums to ``N``.
        centres: ``(K,)`` packed indices; each is its own.
    """
    rows, n = padded_index(counts, apart.device), sum(counts)
    is_centre = torch.zeros(n, dtype=torch.bool, device=apart.device).index_fill(0, centres, True)
    away, nearest = apart.masked_fill(~to_padded(is_centre, counts, False)[:, None], torch.inf).min(-1)
    start = torch.tensor(offsets(counts)[:-1]).to(apart.device, non_blocking=True)[segment_ids(counts, apart.device)]
    found = torch.where(away.flatten()[rows].isinf(), n, nearest.flatten()[rows] + start)
    return found.index_copy(0, centres, centres)


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
    features: Tensor, counts: Sequence[int], group: Tensor, n_centres: Sequence[int], neighbours: int
) -> tuple[Tensor, Tensor]:
    """Find the centres of each group of tokens in a segment, by the density of a few neighbours, and whom each token joins.

    Args:
        features: ``(N, C)``; distances are per channel.
        counts: tokens per segment, sums to ``N``.
        group: ``(N,)`` int64; a group is in one segment, but for those without centres.
        n_centres: per group, at most its members.
        neighbours: that a density is of, and not more than there are centres.

    Returns:
        the centres, packed indices ``(sum(n_centres),)``, ascending; and ``(N,)`` the nearest one of its group for each token,
        ``N`` if it has none.
    """
    device = features.device
    apart = distances(features, counts) / features.shape[-1] ** 0.5
    of = to_padded(group, counts, -1)
    apart = apart.masked_fill(of[:, :, None] != of[:, None], torch.inf)
    wanted = torch.tensor(n_centres, dtype=torch.long).to(device, non_blocking=True)
    near = to_padded(wanted.clamp(max=neighbours)[group], counts)
    density = density_of_nearest(apart, near, min(neighbours, max(n_centres, default=0)))
    away, _ = to_denser(apart, density, counts)
    rows = padded_index(counts, device)
    widest = segment_max(apart.masked_fill(apart.isinf(), 0).amax(-1).flatten()[rows], group, len(n_centres))[group]
    score = torch.where(away.isinf(), widest, away) * density.flatten()[rows]
    centres = select.best_of_groups(score, group, n_centres)
    return centres, nearest_centre(apart, counts, centres)


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


def _exists(apart: Tensor, counts: Sequence[int]) -> Tensor:
    """Where ``(S, n)`` there is a token."""
    lengths = torch.tensor(counts, dtype=torch.long).to(apart.device, non_blocking=True)
    return torch.arange(apart.shape[1], device=apart.device) < lengths[:, None]
