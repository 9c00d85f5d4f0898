"""Cells of videos that stand still over windows of frames, and merge into the first one: all videos at once, on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from operator import add

import torch
from torch import Tensor

from foveate.ops.frames import cells_of, cosine_with, same_cell, tokens_at
from foveate.ops.segments import offsets, segment_ids, segment_mean, segment_sum, within

_ABSENT = -3.0  # the similarity of a cell without a token

#: ``(alike, cells, videos, threshold)`` -> the first frame of the window that each frame is in: `stillest` or `runs`
Cut = Callable[[Tensor, Sequence[int], Sequence[int], float], Tensor]


def stillest(alike: Tensor, cells: Sequence[int], videos: Sequence[int], threshold: float) -> Tensor:
    """Cut videos into windows so that as many cells as can be need not be repeated.

    Args:
        alike: ``(M,)`` on the host, the similarity of each cell with the frame before, frame after frame.
        cells: cells per frame, sums to ``M``; each frame of a video has as many.
        videos: frames of each.
        threshold: a cell is as it was if it is more alike.

    Returns:
        ``(F,)`` int64 the first frame of the window that each frame is in. A cell that stands still in all of a window of
        ``w`` frames saves ``w - 1``. Of windows that save as many, the shorter ones.
    """
    place, width = within(videos), max(videos, default=0) + 1
    sizes = (place + 1).tolist()
    # What a window from each frame to each later one of its video saves: for every last frame a row of where it may begin.
    row, frame = torch.tensor(offsets(sizes)[:-1], dtype=torch.long), segment_ids(cells)
    begun = torch.bincount(row[frame] + place[_since(alike, cells, videos, threshold)], minlength=sum(sizes))
    in_rows_before = torch.tensor(offsets(cells)[:-1], dtype=torch.long)
    still = begun.cumsum(0) - in_rows_before.repeat_interleave(place + 1)
    saved = still * (place.repeat_interleave(place + 1) - within(sizes)) * width
    rows, window = iter(saved.split(sizes)), list[int]()
    for start, n in zip(offsets(videos), videos):
        # The best that can be saved before each frame, times the width, plus the frame: of equal ones the later one wins.
        best, begin = [0], list[int]()
        for part in islice(rows, n):
            found = max(map(add, best, part.tolist()))
            begin.append(found % width)
            best.append(found - begin[-1] + len(best))
        own, b = [0] * n, n - 1
        while b >= 0:
            own[begin[b] : b + 1] = [start + begin[b]] * (b + 1 - begin[b])
            b = begin[b] - 1
        window += own
    return torch.tensor(window, dtype=torch.long)


def _since(alike: Tensor, cells: Sequence[int], videos: Sequence[int], threshold: float) -> Tensor:
    """``(M,)`` int64 the frame since which each cell stands still, its own for one that does not; arguments of `stillest`."""
    n, first = torch.tensor(videos), torch.tensor(offsets(videos)[:-1], dtype=torch.long)
    starts, per_frame = torch.tensor(offsets(cells)), torch.tensor(cells)
    sizes = (n * per_frame[first]).tolist()
    video, j, frame = segment_ids(sizes), within(sizes), segment_ids(cells)
    # Cell after cell of a video, each through all frames.
    through = starts[first][video] + j % n[video] * per_frame[first][video] + j // n[video]
    still = (alike[through] > threshold) & (j % n[video] > 0)
    begun = torch.where(still, 0, torch.arange(len(through))).cummax(0).values
    return torch.empty_like(through).index_copy_(0, through, frame[through[begun]])


def runs(alike: Tensor, cells: Sequence[int], videos: Sequence[int], threshold: float) -> Tensor:
    """Cut videos before each frame whose cells are not more alike than a threshold on average; as `stillest` otherwise."""
    mean = segment_mean(alike.double(), segment_ids(cells), len(cells)).to(
        alike.dtype
    )  # of equal ones it is what they are
    begins = torch.where((mean > threshold) & (within(videos) > 0), 0, torch.arange(len(cells)))
    return begins.cummax(0).values


def merged_over_time(
    alike: Tensor, cells: Sequence[int], videos: Sequence[int], window: Tensor, threshold: float, most: Tensor
) -> Tensor:
    """Tell where each cell is kept when cells that stand still are merged into the first frame of their window.

    Args:
        alike, cells, videos: of `stillest`.
        window: ``(F,)`` int64 the first frame of the window that each frame is in.
        threshold: a cell stands still in a window if it is more alike in all of it.
        most: ``(V,)`` cells of each video that may go; the most alike go first.

    Returns:
        ``(M,)`` int64 cells, its own for a cell that does not go.
    """
    frame, own, start = (
        segment_ids(cells),
        torch.arange(len(alike)),
        torch.tensor(offsets(cells)[:-1], dtype=torch.long),
    )
    into = own + (start[window] - start)[frame]
    later = into < own
    least = torch.full_like(alike, torch.inf).scatter_reduce(0, into[later], alike[later], "amin")
    saved = torch.bincount(into[later], minlength=len(own)) * (least > threshold)
    able = saved.nonzero().flatten()
    able = able[least[able].argsort(descending=True, stable=True)]
    of = segment_ids(videos)[frame[able]]
    able, of = (each[of.argsort(stable=True)] for each in (able, of))
    total = saved[able].cumsum(0)
    before = segment_sum(saved[able], of, len(videos)).cumsum(0) - segment_sum(saved[able], of, len(videos))
    goes = torch.zeros_like(later).index_fill(0, able[total - before[of] <= most[of]], True)
    return torch.where(goes[into], into, own)


def merge_still(
    features: Tensor,
    index: Tensor,
    counts: Sequence[int],
    cells: Sequence[int],
    videos: Sequence[int],
    cut: Cut,
    threshold: float,
    kept: Sequence[int],
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Merge cells that stand still in a window of a video into its first frame, but leave as many tokens as are to be kept.

    Args:
        features: ``(N, C)``; what is compared is their cosine with the same cell of the frame before.
        index, counts, cells: of `foveate.ops.frames.cells_of`; a segment is a frame.
        videos: frames of each.
        cut: `stillest` or `runs`.
        threshold: of these, and of `merged_over_time`.
        kept: tokens that are to be kept of each video.

    Returns:
        ``(N,)`` packed indices, the token that each one becomes part of; ``(N,)`` its group: ``2 f`` for one in frame ``f``
        that stands for several frames, ``2 f + 1`` for one that moves, the last one for what is no more; and for each video the
        members of the groups of its frames. How many these are follows from the data: this asks the device, once.
    """
    first, n_frames = offsets(videos), len(counts)
    before = [-1 if frame in {*first} else frame - 1 for frame in range(n_frames)]
    alike = cosine_with(features, same_cell(index, counts, cells, before), missing=-1.0)
    cell, frame = cells_of(index, counts, cells), segment_ids(cells)
    here = torch.full((sum(cells),), _ABSENT, dtype=alike.dtype, device=alike.device).index_copy(0, cell, alike).cpu()
    present, own = here != _ABSENT, torch.arange(len(here))
    n_present = segment_sum(present.long(), segment_ids(videos)[frame], len(videos))
    window = cut(here, cells, videos, threshold)
    into = merged_over_time(here, cells, videos, window, threshold, n_present - torch.tensor(kept))
    several = torch.zeros_like(into).index_add_(0, into, present.long()) > 1
    stays = present & (into == own)
    group = torch.where(stays, 2 * frame + (~several).long(), 2 * n_frames)
    sizes = torch.bincount(group, minlength=2 * n_frames + 1).tolist()
    into, group = torch.stack([into, group]).to(index.device, non_blocking=True)[:, cell]
    return tokens_at(cell, sum(cells))[into], group, [sizes[2 * a : 2 * b] for a, b in zip(first, first[1:])]
