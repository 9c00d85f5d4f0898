"""Bookkeeping of packed segments: offsets, segment ids, ranges, means, extremes. Host-side lengths, device-side tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor


def offsets(counts: Sequence[int]) -> list[int]:
    """Start of each segment, and the total: ``(S + 1,)`` ints, e.g. ``[3, 2] -> [0, 3, 5]``."""
    out = [0]
    for count in counts:
        out.append(out[-1] + count)
    return out


def segment_ids(counts: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Segment of each packed row, ``(N,)`` int64, e.g. ``[3, 2] -> [0, 0, 0, 1, 1]``."""
    lengths = torch.tensor(counts, dtype=torch.long)
    return torch.repeat_interleave(lengths, output_size=sum(counts)).to(device, non_blocking=True)


def ranges(starts: Sequence[int], lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """``concat(arange(start, start + length))``: ``(sum(lengths),)`` int64."""
    length = torch.tensor(lengths, dtype=torch.long)
    shift = torch.tensor(starts, dtype=torch.long) - (length.cumsum(0) - length)
    total = sum(lengths)
    flat = torch.arange(total) + torch.repeat_interleave(shift, length, output_size=total)
    return flat.to(device, non_blocking=True)


def within(counts: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Rank of each packed row inside its segment, ``(N,)`` int64, e.g. ``[3, 2] -> [0, 1, 2, 0, 1]``."""
    return ranges([0] * len(counts), counts, device)


def segment_sum(x: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Sum of the rows of ``x (N, ...)`` by segment: ``(S, ...)``."""
    return x.new_zeros(n_segments, *x.shape[1:]).index_add_(0, segment, x)


def segment_mean(x: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Mean of the rows of ``x (N, ...)`` by segment, summed in fp32 at least: ``(S, ...)``; an empty segment gives zeros."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    size = segment_sum(wide.new_ones(len(x)), segment, n_segments).clamp(min=1)
    return (segment_sum(wide, segment, n_segments) / size.view(-1, *(1,) * (x.dim() - 1))).to(x.dtype)


def segment_cosine(a: Tensor, b: Tensor, counts: Sequence[int]) -> Tensor:
    """Cosine of the parts of two vectors ``(N,)`` that are in each segment: ``(S,)``; of zeros it is 0."""
    if len(counts) == 1:  # what a step of decoding asks for in every layer
        return torch.cosine_similarity(a[None], b[None], eps=torch.finfo(a.dtype).tiny)
    segment, zeros = segment_ids(counts, a.device), a.new_zeros(len(counts))
    dot, aa, bb = (zeros.index_add(0, segment, x) for x in (a * b, a * a, b * b))
    return dot / (aa * bb).sqrt().clamp(min=torch.finfo(a.dtype).tiny)


def segment_max(x: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Largest of ``x (N,)`` by segment: ``(S,)``; an empty segment gives 0. (``-segment_max(-x, ...)`` is the smallest.)"""
    return x.new_zeros(n_segments).scatter_reduce(0, segment, x, "amax", include_self=False)


def quantile(x: Tensor, counts: Sequence[int], at: float) -> Tensor:
    """Quantile of ``x (N,)`` in each segment, from 0 to 1, linear between two of them: ``(S,)``; an empty segment gives 0."""
    order = torch.argsort(x, stable=True)
    ascending = x[order[torch.argsort(segment_ids(counts, x.device)[order], stable=True)]]
    ascending = torch.nn.functional.pad(ascending, (0, 2))  # what an empty segment is given
    places = [first + at * (n - 1) if n else float(sum(counts)) for n, first in zip(counts, offsets(counts))]
    lower = torch.tensor([int(place) for place in places], dtype=torch.long).to(x.device, non_blocking=True)
    part = torch.tensor([place % 1 for place in places], dtype=x.dtype).to(x.device, non_blocking=True)
    return torch.where(part == 0, ascending[lower], torch.lerp(ascending[lower], ascending[lower + 1], part))


def normalise(x: Tensor, counts: Sequence[int], to: Literal["range", "sum", "softmax", "deviation"]) -> Tensor:
    """Scores ``(N,)`` made comparable between segments, in fp32 at least.

    Args:
        x: ``(N,)``.
        counts: tokens per segment, sums to ``N``.
        to: a ``range`` from 0 to 1; a ``sum`` of 1; the ``softmax``; or a mean of 0 and a standard ``deviation`` of 1. Scores
            that are all equal have no range and no deviation, and become zeros; so do those whose sum is 0.
    """
    wide, segment, n = x.to(torch.promote_types(x.dtype, torch.float32)), segment_ids(counts, x.device), len(counts)
    if to == "range":
        wide = wide + segment_max(-wide, segment, n)[segment]
        size = segment_max(wide, segment, n)[segment]
    elif to == "deviation":
        wide = wide - segment_mean(wide, segment, n)[segment]
        size = segment_mean(wide.square(), segment, n)[segment].sqrt()
    else:
        if to == "softmax":
            wide = (wide - segment_max(wide, segment, n)[segment]).exp()
        size = segment_sum(wide, segment, n)[segment]
    return torch.where(size == 0, 0.0, wide / size)


def segment_softmax(x: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Softmax of ``x (N, ...)`` over the rows of each segment, which need not stand together; in fp32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    index = segment.view(-1, *(1,) * (x.dim() - 1)).expand_as(wide)
    most = wide.new_zeros(n_segments, *x.shape[1:]).scatter_reduce(0, index, wide.detach(), "amax", include_self=False)
    parts = (wide - most[segment]).exp()
    return parts / segment_sum(parts, segment, n_segments)[segment]


def attention_to(keys: Tensor, segment: Tensor, n_segments: int, queries: Tensor, own: Tensor) -> Tensor:
    """How much some queries attend to each key of their segment, the mean over heads and the sum over queries: ``(N,)``.

    Args:
        keys: ``(N, H, d)``.
        segment: ``(N,)`` int64 of each key; a query attends to those of one segment.
        queries: ``(Q, H, d)``.
        own: ``(N, K)`` int64 which queries attend to each key, the same for all of a segment; -1: none.
    """
    alike_ = torch.einsum("nhd,qhd->nqh", keys.float(), queries.float()) / keys.shape[-1] ** 0.5
    alike_ = torch.nn.functional.pad(alike_, (0, 0, 0, 1))  # the last one: none
    index = torch.where(own < 0, alike_.shape[1] - 1, own)[..., None].expand(-1, -1, alike_.shape[2])
    paid = segment_softmax(alike_.gather(1, index), segment, n_segments).mean(-1)
    return paid.masked_fill(own < 0, 0).sum(1)


def pool(x: Tensor, counts: Sequence[int], width: int) -> Tensor:
    """Largest of ``x (N,)`` among each row and its ``width // 2`` neighbours of the same segment on either side: ``(N,)``."""
    if not len(x):
        return x
    reach = width // 2
    padded = to_padded(x, counts, -torch.inf)[:, None]
    pooled = torch.nn.functional.max_pool1d(padded, 2 * reach + 1, stride=1, padding=reach)
    return pooled.flatten()[padded_index(counts, x.device)]


def to_padded(x: Tensor, counts: Sequence[int], fill: float = 0.0) -> Tensor:
    """Packed ``(N, ...)`` to padded ``(S, max(counts), ...)``, padding on the right."""
    width = max(counts, default=0)
    out = x.new_full((len(counts) * width, *x.shape[1:]), fill)
    out[padded_index(counts, x.device)] = x
    return out.view(len(counts), width, *x.shape[1:])


def padded_index(counts: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Row of each packed token in the flattened padded tensor ``(S * max(counts),)``: ``(N,)`` int64."""
    width = max(counts, default=0)
    return ranges([i * width for i in range(len(counts))], counts, device)


def alike(counts: Sequence[int], others: Sequence[int] | None = None) -> list[list[int]]:
    """Sort segments into groups of like lengths, each to be padded by itself: the numbers of the segments of each group.

    Of a large image among many small ones, padding makes as many large ones, and products of all pairs of tokens grow with the
    square of that. There is one group where they are at most four times as many as without padding; else each has lengths
    within a factor of two.

    Args:
        counts: tokens per segment.
        others: tokens per segment that these are paired with; by default the same ones.
    """
    others = counts if others is None else others
    padded = len(counts) * max(counts, default=0) * max(others, default=0)
    if padded <= 4 * sum(n * m for n, m in zip(counts, others)):
        return [list(range(len(counts)))]
    groups: dict[tuple[int, int], list[int]] = {}
    for segment, (n, m) in enumerate(zip(counts, others)):
        groups.setdefault((n.bit_length(), m.bit_length()), []).append(segment)
    return list(groups.values())


def rows_of(members: Sequence[int], counts: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Packed rows of the segments ``members``, one after another: ``(sum of their counts,)`` int64."""
    start = offsets(counts)
    return ranges([start[s] for s in members], [counts[s] for s in members], device)


class Alike(NamedTuple):
    """Segments of like lengths: which they are, the packed rows of their tokens, how many these are, and how many to choose."""

    members: list[int]
    rows: Tensor
    counts: list[int]
    k: list[int]


def choose_alike(
    choose: Callable[[Alike], Tensor], counts: Sequence[int], k: Sequence[int], device: torch.device
) -> Tensor:
    """Choose tokens in segments of like lengths together, which are padded to the same one.

    Args:
        choose: returns the places of ``sum(k)`` tokens among the rows of such segments.
        counts: tokens per segment.
        k: how many to choose of each; where it is none of any, nobody is asked.
        device: of the rows.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    chosen = [torch.empty(0, dtype=torch.long, device=device)]
    for members in alike(counts):
        few, own = [counts[s] for s in members], [k[s] for s in members]
        if sum(own):
            at = Alike(list(members), rows_of(members, counts, device), few, own)
            chosen.append(at.rows[choose(at)])
    return torch.cat(chosen).sort().values


def padded_pairs(counts: Sequence[int], others: Sequence[int] | None = None) -> int:
    """Pairs of tokens that are computed when each group of `alike` is padded by itself."""
    others = counts if others is None else others
    return sum(
        len(members) * max(counts[s] for s in members) * max(others[s] for s in members)
        for members in alike(counts, others)
        if members
    )


#: rows of a matrix whose products with the rows up to them are computed at once
_STRIP = 512
#: so small a matrix may be computed in a way that rounds the products of two rows in one order unlike those in the other
_MIRRORED = 64


def gram(x: Tensor) -> Tensor:
    """Products ``(S, n, n)`` of the rows of ``x (S, n, C)`` with each other, of two rows once where there are many."""
    n = x.shape[1]
    if n <= _STRIP:
        out = x @ x.transpose(1, 2)
        return out if n > _MIRRORED else torch.maximum(out, out.transpose(1, 2))
    out = x.new_empty(len(x), n, n)
    for start in range(0, n, _STRIP):
        end = min(start + _STRIP, n)
        out[:, start:end, :end] = x[:, start:end] @ x[:, :end].transpose(1, 2)
        out[:, :start, start:end] = out[:, start:end, :start].transpose(1, 2)
    return out


def gram_pairs(counts: Sequence[int]) -> int:
    """Pairs of tokens of which `gram` computes products, when each group of `alike` is padded by itself."""
    total = 0
    for members in alike(counts):
        n = max((counts[s] for s in members), default=0)
        whole, rest = divmod(n, _STRIP)
        total += len(members) * (_STRIP**2 * whole * (whole + 1) // 2 + rest * n)
    return total
