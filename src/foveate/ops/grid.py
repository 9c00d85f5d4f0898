"""Rectangles of tokens made smaller, line by line.

The tokens of a span fill a rectangle ``(height, width)`` in raster order. Merging along the ``width`` takes the same number
of tokens from every row, along the ``height`` from every column, so that what is left fills a rectangle again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops import select
from foveate.ops.segments import offsets, segment_ids, segment_mean, within

Shapes = Sequence[tuple[int, int]]
Rectangles = tuple[tuple[int, int], ...]


def shorter(shapes: Shapes, axis: str, share: float) -> Rectangles:
    """Rectangles with ``share`` of their tokens left on every line along ``axis``."""
    if axis == "width":
        return tuple((height, _whole(width * share)) for height, width in shapes)
    return tuple((_whole(height * share), width) for height, width in shapes)


def filled(shapes: Shapes, whole: Shapes, share: float) -> Rectangles:
    """Rectangles of the same widths and at least half the heights that come nearest to ``share`` of the ``whole`` ones."""
    found = []
    for (height, width), (h, w) in zip(shapes, whole):
        wanted = _whole(h * w * share / width) if width else height
        found.append((min(height, max(wanted, (height + 1) // 2)), width))
    return tuple(found)


def lines(shapes: Shapes, axis: str) -> tuple[Tensor, list[int]]:
    """Return the tokens line after line: raster places ``(N,)``, on the host, and the length of each line.

    ``[(2, 3)]`` along the width gives ``[0 1 2 3 4 5]`` and ``[3, 3]``, along the height ``[0 3 1 4 2 5]`` and ``[2, 2, 2]``.
    """
    counts = [height * width for height, width in shapes]
    if axis == "width":
        return torch.arange(sum(counts)), [width for height, width in shapes for _ in range(height)]
    segment, rank = segment_ids(counts), within(counts)
    height, width = torch.tensor(shapes, dtype=torch.long).view(-1, 2)[segment].unbind(1)
    start = torch.tensor(offsets(counts)[:-1], dtype=torch.long)[segment]
    return start + rank % height * width + rank // height, [height for height, width in shapes for _ in range(width)]


def merge_groups(features: Tensor, shapes: Shapes, smaller: Shapes, axis: str, shared: bool = False) -> Tensor:
    """Tell which tokens become one when every line along ``axis`` is merged to its new length.

    Only neighbours on a line merge: of its odd tokens those most like one of their (even) neighbours join it.

    Args:
        features: ``(N, D)`` in raster order; similarity is the cosine.
        shapes, smaller: rectangles before and after, equal on the other axis. A line can at most be halved.
        axis: ``width`` or ``height``.
        shared: all lines of a rectangle make the same choice, by their mean similarity.

    Returns:
        ``(N,)`` int64: the place in the smaller rectangles, in raster order, of the token that each one becomes part of.
    """
    order, lengths = lines(shapes, axis)
    new_order, new_lengths = lines(smaller, axis)
    order, new_order = (x.to(features.device, non_blocking=True) for x in (order, new_order))
    similarity = _to_next(features[order])
    if shared:
        similarity = _mean_of_lines(similarity, shapes, lengths, axis)
    joined = pair(similarity, lengths, [n - kept for n, kept in zip(lengths, new_lengths)])
    return torch.empty_like(order).index_copy_(0, order, new_order[joined])


def pair(similarity: Tensor, lengths: Sequence[int], merges: Sequence[int]) -> Tensor:
    """Join ``merges[i]`` odd tokens of line ``i``, those most similar to a neighbour, to that neighbour.

    Args:
        similarity: ``(N,)``, of each token with the next one (whatever it says where a line ends).
        lengths: tokens of each line.
        merges: at most half of each length.

    Returns:
        ``(N,)`` int64, the number of each token's group, counted along all lines.
    """
    pairs = [n // 2 for n in lengths]
    line, rank = segment_ids(pairs), 2 * within(pairs) + 1
    has_next = rank + 1 < torch.tensor(lengths, dtype=torch.long)[line]
    odd = torch.tensor(offsets(lengths)[:-1], dtype=torch.long)[line] + rank
    has_next, odd = (x.to(similarity.device, non_blocking=True) for x in (has_next, odd))
    before, after = similarity[odd - 1], similarity[odd].masked_fill(~has_next, -torch.inf)
    chosen = select.top_k(torch.maximum(before, after), pairs, merges)
    # A group is a run of tokens: an odd one joins the one before it, or the one after it joins.
    joins = odd[chosen] + (after > before)[chosen].long()
    fresh = torch.ones(len(similarity), dtype=torch.long, device=similarity.device).index_fill(0, joins, 0)
    return fresh.cumsum(0) - 1


def thin(shapes: Shapes, smaller: Shapes) -> Tensor:
    """Give the evenly spaced rows and columns of each rectangle that make the smaller one: raster places ``(M,)``, on the host.

    Of ``n`` lines, ``k`` stay: line ``floor((i + 1/2) n / k)`` for ``i < k``.
    """
    counts = [height * width for height, width in smaller]
    segment, rank = segment_ids(counts), within(counts)
    old = torch.tensor(shapes, dtype=torch.long).view(-1, 2)
    height, width = old[segment].unbind(1)
    new_height, new_width = torch.tensor(smaller, dtype=torch.long).view(-1, 2)[segment].unbind(1)
    y = (2 * (rank // new_width) + 1) * height // (2 * new_height)
    x = (2 * (rank % new_width) + 1) * width // (2 * new_width)
    start = torch.tensor(offsets((old[:, 0] * old[:, 1]).tolist())[:-1], dtype=torch.long)[segment]
    return start + y * width + x


def around(index: Tensor, counts: Sequence[int], shapes: Shapes, centres: Tensor) -> Tensor:
    """Tell which tokens are right beside, above or below one of some ``centres``: ``(N,)`` bool.

    Args:
        index: ``(N,)`` int64, the raster place of each token in its rectangle, where others may be missing.
        counts: tokens per rectangle, sums to ``N``.
        shapes: rectangles.
        centres: ``(K,)`` packed indices.
    """
    sizes, device = [height * width for height, width in shapes], index.device
    facts = torch.tensor([[offsets(sizes)[i], *shape] for i, shape in enumerate(shapes)], dtype=torch.long)
    start, height, width = facts.to(device, non_blocking=True)[segment_ids(counts, device)].unbind(1)
    marked = torch.zeros(sum(sizes) + 1, dtype=torch.bool, device=device)
    marked[(start + index)[centres]] = True
    y, x, found = index // width, index % width, torch.zeros_like(index, dtype=torch.bool)
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        found |= marked[torch.where(inside, start + index + down * width + right, sum(sizes))]
    return found


def smoothed(x: Tensor, index: Tensor, counts: Sequence[int], shapes: Shapes) -> Tensor:
    """Blur ``x (N,)`` over the 3x3 cells around each token by a Gaussian of one cell's width, mirrored at the border.

    Cells without a token do not count. Other arguments are those of `relative`.
    """
    sizes, device = [height * width for height, width in shapes], index.device
    facts = torch.tensor([[at, *shape] for at, shape in zip(offsets(sizes), shapes)], dtype=torch.long).view(-1, 3)
    start, height, width = facts.to(device, non_blocking=True)[segment_ids(counts, device)].unbind(1)
    cells = x.new_zeros(sum(sizes), 2).index_copy_(0, start + index, torch.stack([x, torch.ones_like(x)], 1))
    y, x_, total = index // width, index % width, x.new_zeros(len(x), 2)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            row, column = (_mirrored(at, most) for at, most in ((y + down, height), (x_ + right, width)))
            total += math.exp(-(down**2 + right**2) / 2) * cells[start + row * width + column]
    return total[:, 0] / total[:, 1]


def _mirrored(at: Tensor, most: Tensor) -> Tensor:
    """Bring lines one beyond the border ``[0, most)`` back: to the one before it, or to the only one."""
    return torch.where(at < 0, 1, torch.where(at >= most, most - 2, at)).clamp(min=0).minimum(most - 1)


def relative(index: Tensor, counts: Sequence[int], shapes: Shapes) -> Tensor:
    """Return where each token is in its rectangle, from corner to corner, in units of that diagonal: ``(N, 2)``.

    Args:
        index: ``(N,)`` raster place of each token in its rectangle, where others may be missing.
        counts: tokens per rectangle, sums to ``N``.
        shapes: rectangles.
    """
    facts = torch.tensor([(w, max(h - 1, 1), max(w - 1, 1)) for h, w in shapes], dtype=torch.long).view(-1, 3)
    width, down, across = facts.to(index.device, non_blocking=True)[segment_ids(counts, index.device)].unbind(1)
    return torch.stack([index // width / down, index % width / across], 1) / 2**0.5


def _whole(share: float) -> int:
    """Return the nearest whole number, halves up, as in `foveate.schedule.survivors`."""
    return math.floor(share + 0.5)


def _to_next(features: Tensor) -> Tensor:
    """Cosine of each row of ``(N, D)`` with the next one: ``(N,)``; the last has none."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    return torch.nn.functional.pad((unit[:-1] * unit[1:]).sum(-1), (0, 1))[: len(unit)]


def _mean_of_lines(similarity: Tensor, shapes: Shapes, lengths: Sequence[int], axis: str) -> Tensor:
    """Every line's similarities ``(N,)`` replaced by their mean over the lines of the same rectangle."""
    side = [width if axis == "width" else height for height, width in shapes]
    counts = [height * width for height, width in shapes]
    start = torch.tensor(offsets(side)[:-1], dtype=torch.long)[segment_ids(counts)]
    place = (start + within(lengths)).to(similarity.device, non_blocking=True)
    return segment_mean(similarity, place, sum(side))[place]


def windows(index: Tensor, counts: Sequence[int], shapes: Shapes, k: Sequence[int], side: int) -> tuple[Tensor, Tensor]:
    """Cut every rectangle into ``k[s]`` windows, as square as can be: one or more rows of windows, in each of them as many as
    in the others, or one more.

    Where a rectangle has lost tokens, its windows are runs of what is left.

    Args:
        index: ``(N,)`` raster place of each token in its rectangle, segment after segment, ascending.
        counts: tokens of each segment.
        shapes: height and width of the whole rectangle.
        k: windows of each segment, at most its tokens.
        side: cells along each axis of a window.

    Returns:
        ``(N,)`` int64 the window of each token, counted along all segments (``sum(k)``: its segment has none); and ``(N,)`` in
        which of the ``side * side`` cells of its window it is, row after row.
    """
    segment, rank = segment_ids(counts), within(counts)
    facts = [
        (max(-(-most // width), min(height, most, max(1, round((most * height / width) ** 0.5)))), n == height * width)
        for (height, width), most, n in zip(shapes, k, counts)
    ]
    table = torch.tensor(
        [(h, w, most, rows, whole, n) for (h, w), most, (rows, whole), n in zip(shapes, k, facts, counts)],
        dtype=torch.long,
    ).view(-1, 6)
    start = torch.tensor(offsets(k)[:-1], dtype=torch.long)[segment]
    start, rank, segment, table = (x.to(index.device, non_blocking=True) for x in (start, rank, segment, table))
    height, width, most, rows, whole, n = table[segment].unbind(1)
    y, x, rows = index // width, index % width, rows.clamp(min=1)
    row = y * rows // height
    first = most * row // rows
    across = (most * (row + 1) // rows - first).clamp(min=1)
    inside = (y * rows * side // height % side) * side + x * across * side // width % side
    run = rank * most // n
    part = (rank * most * side * side // n) % (side * side)
    square = whole.bool()
    window = start + torch.where(square, first + x * across // width, run)
    return torch.where(most > 0, window, sum(k)), torch.where(square, inside, part)
