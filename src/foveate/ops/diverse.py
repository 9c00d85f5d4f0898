"""Diverse subsets of each segment, chosen step by step: duplicates leave, or a determinant grows. Packed indices, ascending."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from foveate.ops.pairs import best_column, cosines
from foveate.ops.pairs import products as products_of_pairs
from foveate.ops.segments import (
    alike,
    choose_alike,
    gram,
    gram_pairs,
    offsets,
    padded_index,
    rows_of,
    segment_ids,
    to_padded,
)
from foveate.ops.select import rank_within

#: A token adds nothing to a set where it spans less than this share of what the first one does, which is rounding.
_NOTHING = 1e-6


def without_duplicates(features: Tensor, counts: Sequence[int], k: Sequence[int], step: int) -> Tensor:
    """Drop what has a near duplicate, a few tokens at a time, until ``k[s]`` are left of each segment.

    In each round the first, third, ... token is compared with the second, fourth, ... ones, and those with the best match
    leave. The others of these stand first in the next round, the most alike first, then those that they were compared with.

    Args:
        features: ``(N, C)``, in the order of the first round; what is compared is the cosine.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.
        step: tokens that leave in a round, at least 1.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    chosen = [torch.empty(0, dtype=torch.long, device=features.device)]
    for members in alike(counts):
        rows = rows_of(members, counts, features.device)
        if len(rows):
            few, left = [counts[s] for s in members], [k[s] for s in members]
            chosen.append(rows[_without_duplicates(features[rows], few, left, step)])
    return torch.cat(chosen).sort().values


def without_duplicates_flops(counts: Sequence[int], k: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix product in `without_duplicates` (2 per multiply-add)."""
    pairs = 0
    for members in alike(counts):
        if any(k[s] < counts[s] for s in members):
            pairs += gram_pairs([counts[s] for s in members])
    return 2 * pairs * width


def _without_duplicates(features: Tensor, counts: list[int], k: list[int], step: int) -> Tensor:
    """Find what `without_duplicates` says, in segments of like lengths."""
    if counts == k:
        return torch.arange(sum(k), device=features.device)
    device, left = features.device, list(counts)
    x = to_padded(normalize(features.detach().float(), dim=-1), counts)
    cosine = gram(x)
    segment = torch.arange(len(counts), device=device)[:, None, None]
    half = (x.shape[1] + 1) // 2
    room = cosine.new_empty(
        len(counts) * half * x.shape[1]
    )  # once, as new memory costs more than what is written there
    order = name = torch.arange(x.shape[1], device=device).repeat(len(counts), 1)
    while left != k:
        order = order[:, : max(left)]
        if 4 * order.shape[1] <= 3 * cosine.shape[1]:  # a quarter of them has gone: look at the others alone
            cosine = cosine[segment, order[:, :, None], order[:, None]]
            name, order = name.gather(1, order), torch.arange(order.shape[1], device=device).repeat(len(counts), 1)
        first, second = order[:, 0::2], order[:, 1::2]
        n_first = [(n + 1) // 2 for n in left]
        gone = [min(step, n - kept, most) for n, kept, most in zip(left, k, n_first)]
        facts = torch.tensor([left, n_first, gone], dtype=torch.long)
        n, odd, go = facts.to(device, non_blocking=True)[:, :, None]
        match = _best_match(cosine, first, second, torch.arange(second.shape[1], device=device) < n - odd, room)
        match = match.masked_fill(torch.arange(first.shape[1], device=device) >= odd, -torch.inf)
        ranked = first.gather(1, match.argsort(dim=1, descending=True, stable=True))
        place = torch.arange(order.shape[1], device=device)
        place = torch.where(place < odd - go, place + go, first.shape[1] + place - (odd - go))
        both = torch.cat([ranked, second], 1)
        order = both.gather(1, place.clamp(0, both.shape[1] - 1))
        left = [each - out for each, out in zip(left, gone)]
    start = torch.tensor(offsets(counts)[:-1]).to(device, non_blocking=True)[:, None]
    order = name.gather(1, order[:, : max(k)])
    return (order + start).flatten()[padded_index(k, device)]


def _best_match(cosine: Tensor, first: Tensor, second: Tensor, there: Tensor, room: Tensor) -> Tensor:
    """``(S, a)``: of each of ``first (S, a)``, its largest ``cosine (S, n, n)`` with those of ``second (S, b)`` that are
    ``there (S, b)``, -inf if none is. Whole rows are read, into ``room``, which is much faster than single cells."""
    segments, n = cosine.shape[:2]
    hidden = cosine.new_full((segments, n + 1), -torch.inf).scatter(1, second.where(there, n), 0.0)[:, None, :n]
    rows = first + torch.arange(0, segments * n, n, device=first.device)[:, None]
    read = room[: rows.numel() * n].view(-1, n)
    torch.index_select(cosine.flatten(0, 1), 0, rows.flatten(), out=read)
    return read.view(*first.shape, n).add_(hidden).amax(-1)


def not_redundant(
    features: Tensor, counts: Sequence[int], group: Tensor, score: Tensor, times: Sequence[float]
) -> Tensor:
    """Tell which tokens no better token of their group resembles that is not redundant itself: ``(N,)`` bool.

    It asks the device in each round; there are as many as a chain of redundant tokens is long.

    Args:
        features: ``(N, C)``; what is compared is the cosine.
        counts: tokens per segment, sums to ``N``.
        group: ``(N,)`` int64; a group is in one segment.
        score: ``(N,)``, higher is better, of equal ones the earlier.
        times: per segment, how many times the mean cosine of its pairs two tokens have to be alike.
    """
    fresh = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for members in alike(counts):
        few = [counts[s] for s in members]
        if not sum(few):
            continue
        rows = rows_of(members, counts, features.device)
        x = to_padded(normalize(features.detach().float()[rows], dim=-1), few)
        cosine = gram(x)
        off = cosine.sum((1, 2)) - cosine.diagonal(0, 1, 2).sum(1)
        pairs = torch.tensor([[max(n * (n - 1), 1), times[s]] for n, s in zip(few, members)], dtype=x.dtype)
        pairs, factor = pairs.to(x.device, non_blocking=True).unbind(1)
        rank = to_padded(rank_within(score[rows], few), few, -1)
        of = to_padded(group[rows], few, -1)
        better = (rank[:, None] < rank[:, :, None]) & (of[:, None] == of[:, :, None]) & (rank[:, None] >= 0)
        better &= cosine > (off / pairs * factor)[:, None, None]
        open_, stays = rank >= 0, torch.zeros_like(rank, dtype=torch.bool)
        while bool(open_.any()):
            settled = open_ & ~(better & open_[:, None]).any(-1)
            stays |= settled
            open_ &= ~settled & ~(better & settled[:, None]).any(-1)
        fresh[rows] = stays.flatten()[padded_index(few, x.device)]
    return fresh


def not_redundant_flops(counts: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `not_redundant` (2 per multiply-add)."""
    return 2 * gram_pairs(counts) * width


def determinantal(features: Tensor, quality: Tensor, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """Greedily choose the tokens of each segment whose kernel has the largest determinant (MAP of a determinantal process).

    The kernel of two tokens is the cosine of their features times both qualities. Each pick is the token that multiplies the
    determinant most; what it leaves of the others is known by an incremental Cholesky factor. Where those picked span all that
    there is, the best qualities follow. Ties go to the earlier token.

    Args:
        features: ``(N, C)``.
        quality: ``(N,)``, 0 or more.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    return choose_alike(
        lambda at: _determinantal(features[at.rows], quality[at.rows], at.counts, at.k), counts, k, features.device
    )


def determinantal_flops(counts: Sequence[int], k: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `determinantal` (2 per multiply-add)."""
    products = 0
    for members in alike(counts):
        picks = max((k[s] for s in members), default=0)
        longest = max((counts[s] for s in members), default=0)
        products += len(members) * longest * (picks * width + picks * (picks - 1) // 2)
    return 2 * products


def _determinantal(features: Tensor, quality: Tensor, counts: list[int], k: list[int]) -> Tensor:
    """Find what `determinantal` says, in segments of like lengths."""
    x = to_padded(normalize(features.detach().float(), dim=-1), counts)  # (S, n, C)
    quality = to_padded(quality.detach().float(), counts)
    segment = torch.arange(len(counts), device=x.device)
    spans = quality.square() * (x != 0).any(-1)  # what each token would multiply the determinant by
    least = (_NOTHING * spans.amax(1, keepdim=True)).clamp(min=torch.finfo(spans.dtype).tiny)

    def row(pick: Tensor) -> Tensor:
        alike_ = torch.bmm(x, x[segment, pick][:, :, None])[..., 0]
        return alike_ * quality * quality[segment, pick][:, None]

    return _greedily(row, spans, least, -1 / (1 + quality), counts, k)


def log_determinant(features: Tensor, strength: float, counts: Sequence[int], k: Sequence[int]) -> Tensor:
    """Greedily choose the tokens of each segment with the largest ``log det(I + strength * G @ G)``, of their rows and columns.

    ``G`` are the products of all pairs of tokens of the segment. Ties go to the earlier token.

    Args:
        features: ``(N, C)``.
        strength: above 0.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    return choose_alike(
        lambda at: _log_determinant(features[at.rows], strength, at.counts, at.k), counts, k, features.device
    )


def log_determinant_flops(counts: Sequence[int], k: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `log_determinant` (2 per multiply-add)."""
    products = 0
    for members in alike(counts):
        picks = max((k[s] for s in members), default=0)
        longest = max((counts[s] for s in members), default=0)
        if picks:
            work = longest * longest * picks + longest * picks * (picks - 1) // 2
            products += len(members) * work + gram_pairs([counts[s] for s in members]) * width
    return 2 * products


def _log_determinant(features: Tensor, strength: float, counts: list[int], k: list[int]) -> Tensor:
    """Find what `log_determinant` says, in segments of like lengths."""
    x = to_padded(features.detach().float(), counts)
    products, segment = gram(x), torch.arange(len(counts), device=x.device)
    spans = 1 + strength * products.square().sum(-1)  # it is never less than 1, however many are chosen

    def row(pick: Tensor) -> Tensor:  # without the 1 of its own column, which nobody asks for again
        return strength * torch.bmm(products, products[segment, pick][:, :, None])[..., 0]

    return _greedily(row, spans, spans.new_full((len(counts), 1), 0.5), spans, counts, k)


def _greedily(
    row: Callable[[Tensor], Tensor], spans: Tensor, least: Tensor, instead: Tensor, counts: list[int], k: list[int]
) -> Tensor:
    """Return the tokens that multiply a determinant most, one after another, in segments of like lengths.

    Args:
        row: gives the row ``(S, n)`` of the kernel of the token ``(S,)`` of each segment.
        spans: ``(S, n)`` the diagonal of the kernel.
        least: ``(S, 1)``; a token that spans no more adds nothing, and counts by its value ``instead (S, n)``, below 0.
    """
    device, picks = spans.device, []
    free = to_padded(torch.ones(sum(counts), dtype=torch.bool, device=device), counts, False)
    factor = spans.new_zeros(len(counts), max(k), spans.shape[1])
    segment = torch.arange(len(counts), device=device)
    for i in range(max(k)):
        pick = torch.where(spans > least, spans, instead).masked_fill(~free, -torch.inf).argmax(1)
        column = row(pick)
        if i:
            column = column - torch.bmm(factor[segment, :i, pick][:, None], factor[:, :i])[:, 0]
        left = spans[segment, pick][:, None]
        factor[:, i] = torch.where(left > least, column / left.clamp(min=least).sqrt(), 0.0)
        spans = spans - factor[:, i].square()
        free = free.scatter(1, pick[:, None], False)
        picks.append(pick)
    start = torch.tensor(offsets(counts)[:-1]).to(device, non_blocking=True)
    return (torch.stack(picks, 1) + start[:, None]).flatten()[padded_index(k, device)]


def weighted_spread(
    features: Tensor,
    weight: Tensor,
    counts: Sequence[int],
    k: Sequence[int],
    first: Tensor | None = None,
    n_first: Sequence[int] = (),
    most: float = torch.inf,
    ahead: Tensor | None = None,
) -> Tensor:
    """Greedily choose tokens of each segment: each is the one with the largest product of its weight and its distance.

    The distance is 1 minus the cosine, to the nearest token chosen so far; for the first choice of a segment, to the nearest
    other token. Ties go to the earlier token.

    Args:
        features: ``(N, C)``.
        weight: ``(N,)``, 0 or more.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``n_first[s] <= k[s] <= counts[s]``.
        first: packed indices, ascending, which are chosen beforehand; None: none.
        n_first: how many of these are of each segment.
        most: distances above count as this one.
        ahead: ``(N,)`` bool, which tokens are chosen before all others, no more than are wanted.

    Returns:
        ``(sum(k),)`` int64, ascending, the first ones among them.
    """
    n_first = [0] * len(counts) if first is None else list(n_first)
    wanted = [total - begun for total, begun in zip(k, n_first)]
    none = torch.empty(0, dtype=torch.long, device=features.device)
    first = none if first is None else first
    if not sum(wanted):
        return first
    n, chosen, device = len(features), [first], features.device
    taken = torch.zeros(n + 1, dtype=torch.bool, device=device).index_fill(0, first, True)
    begun = torch.tensor(n_first, dtype=torch.long).to(device, non_blocking=True)[segment_ids(counts, device)] > 0
    begun = pad(begun, (0, 1), value=True)

    def nearest(cosine: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor]:
        others = (column[:, None] != row[..., None]) & (column < n)[:, None]
        found, _ = best_column(cosine, others & (taken[column][:, None] | ~begun[row][..., None]), column)
        return (found,)

    (cosine,) = cosines(features, counts).ask(nearest)
    reach = (1 - cosine.clamp(min=-1.0)).clamp(max=most)  # of a token that is alone it is that of an opposite one
    for members in alike(counts):
        own = [wanted[s] for s in members]
        if sum(own):
            rows, few = rows_of(members, counts, features.device), [counts[s] for s in members]
            here = features[rows], weight[rows], reach[rows], taken[rows], None if ahead is None else ahead[rows]
            chosen.append(rows[_weighted_spread(*here, [n_first[s] for s in members], few, own, most)])
    return torch.cat(chosen).sort().values


def weighted_spread_flops(
    counts: Sequence[int], k: Sequence[int], width: int, n_first: Sequence[int] | None = None
) -> int:
    """Floating-point operations of the matrix products in `weighted_spread` (2 per multiply-add)."""
    wanted = list(k) if n_first is None else [total - begun for total, begun in zip(k, n_first)]
    if not sum(wanted):
        return 0
    rows = 0
    for members in alike(counts):
        picks = max((wanted[s] for s in members), default=0)
        rows += len(members) * max((counts[s] for s in members), default=0) * picks
    return products_of_pairs(counts, width, questions=1) + 2 * rows * width


def _weighted_spread(
    features: Tensor,
    weight: Tensor,
    reach: Tensor,
    taken: Tensor,
    ahead: Tensor | None,
    n_first: list[int],
    counts: list[int],
    k: list[int],
    most: float,
) -> Tensor:
    """Find what `weighted_spread` adds to the first ones, in segments of like lengths."""
    device, picks = features.device, []
    x = to_padded(normalize(features.detach().float(), dim=-1), counts)
    weight, reach = to_padded(weight.detach().float(), counts), to_padded(reach, counts)
    free = to_padded(~taken, counts, False)
    ahead = None if ahead is None else to_padded(ahead, counts, False)
    segment = torch.arange(len(counts), device=device)
    begun = torch.tensor(n_first).to(device, non_blocking=True)[:, None] > 0
    for i in range(max(k)):
        score = weight * reach if ahead is None else (weight * reach).masked_fill(ahead, torch.inf)
        pick = score.masked_fill(~free, -torch.inf).argmax(1)
        free = free.scatter(1, pick[:, None], False)
        away = (1 - torch.bmm(x, x[segment, pick][:, :, None])[..., 0]).clamp(max=most)
        reach = torch.where(begun | (i > 0), torch.minimum(reach, away), away)
        picks.append(pick)
    start = torch.tensor(offsets(counts)[:-1]).to(device, non_blocking=True)
    return (torch.stack(picks, 1) + start[:, None]).flatten()[padded_index(k, device)]
