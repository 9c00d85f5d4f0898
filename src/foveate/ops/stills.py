"""Segments of a video by the clusters of its frames, and cells that are the same in all frames of one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from foveate.ops.clusters import around_peaks
from foveate.ops.frames import Windows
from foveate.ops.segments import offsets, segment_ids, segment_mean, segment_sum


def by_clusters(
    features: Tensor, counts: Sequence[int], videos: Sequence[int], share: float, neighbours: int
) -> list[Windows]:
    """Cut videos into segments: clusters of frames by their mean tokens, made contiguous (`contiguous`); asks the device.

    Args:
        features: ``(N, C)``.
        counts: tokens per frame, sums to ``N``.
        videos: frames of each.
        share: clusters per frame, rounded down, at least one for a video.
        neighbours: that the density of a frame is of.

    Returns:
        for each video the first and the last frame of its segments, counted in the video.
    """
    mean = segment_mean(features.float(), segment_ids(counts, features.device), len(counts))
    group = segment_ids(videos, features.device)
    n_clusters = [max(min(n, 1), int(share * n)) for n in videos]
    _, centre = around_peaks(mean, videos, group, n_clusters, neighbours, up_to_centres=False)
    labels = centre.tolist()
    return [contiguous(labels[a:b]) for a, b in pairwise(offsets(videos))]


def contiguous(labels: Sequence[int]) -> Windows:
    """Make segments of the clusters of frames: of each cluster its longest runs stay, if they are of two frames or more.

    What is between two such runs joins the longer one, with what has joined it before, the earlier of two that are as long. If
    there is no such run, all frames are one segment.
    """
    runs = [(label, len(list(members))) for label, members in groupby(labels)]
    longest = {label: max(n for each, n in runs if each == label) for label, _ in runs}
    kept = [label if n == longest[label] >= 2 else -1 for label, n in runs for _ in range(n)]
    frame = 0
    while frame < len(kept):
        end = frame
        while end < len(kept) and kept[end] < 0:
            end += 1
        if end > frame:
            before, after = (next(groupby(part), (-1, ())) for part in (kept[:frame][::-1], kept[end:]))
            earlier, later = (len(list(members)) for _, members in (before, after))
            kept[frame:end] = [(before if earlier and earlier >= later else after)[0]] * (end - frame)
        frame = end + 1
    ends = list(accumulate(len(list(members)) for _, members in groupby(kept)))
    return [(a, b - 1) for a, b in pairwise([0, *ends])]


def merge_in_segments(
    features: Tensor,
    index: Tensor,
    counts: Sequence[int],
    cells: Sequence[int],
    windows: Sequence[Windows],
    threshold: float,
    kept: Sequence[int],
) -> tuple[Tensor, Tensor, list[int]]:
    """Merge cells that stay alike over all frames of a segment into its first frame, but leave as many tokens as are kept.

    Args:
        features: ``(N, C)``; what is compared is the mean cosine of all pairs of frames.
        index: ``(N,)`` the cell of each token in its frame, below the ``cells`` of that.
        counts: tokens per frame, sums to ``N``.
        windows: segments of each video.
        threshold: a cell merges if it is more alike, the most alike first.
        kept: tokens that are to be kept of each video.

    Returns:
        ``(N,)`` packed indices, the token that each one becomes part of; ``(N,)`` its group: ``2 f`` for one in frame ``f``
        that stands for several frames, ``2 f + 1`` for one that moves, ``2 F`` for what is no more; and how many members each
        group has, for which this asks the device.
    """
    n, device, first = len(features), features.device, offsets([sum(b - a + 1 for a, b in each) for each in windows])
    segments_of = [(start + a, start + b) for start, each in zip(first, windows) for a, b in each]
    lengths = [b - a + 1 for a, b in segments_of]
    side = max(cells, default=1)
    frame = segment_ids(counts, device)
    of = segment_ids(lengths, device)[frame]
    place = of * side + index  # of a cell in its segment
    unit = torch.nn.functional.normalize(features.detach().float(), dim=-1)
    total = segment_sum(unit, place, len(lengths) * side)
    size = segment_sum(torch.ones_like(place), place, len(total))
    alike = (total.square().sum(-1) - size) / (size * (size - 1)).clamp(min=1)
    alike = alike.masked_fill((size < 2) | (alike <= threshold), -2.0)
    saved = torch.where(alike > -2, size - 1, 0)
    # Of each video the most alike ones, as long as enough is left.
    order = alike.argsort(descending=True, stable=True)
    video = segment_ids([len(each) for each in windows], device).repeat_interleave(side)[order]
    order = order[video.argsort(stable=True)]
    facts = [sum(counts[a:b]) - k for a, b, k in zip(first, first[1:], kept)]
    room = torch.tensor(facts, dtype=torch.long).to(device, non_blocking=True)
    video = video.sort(stable=True).values
    spent = saved[order].cumsum(0)
    before = torch.cat([spent.new_zeros(1), spent])[offsets_of(windows, side, device)]
    merges = torch.zeros(len(total), dtype=torch.bool, device=device)
    merges[order] = (spent - before[video] <= room[video]) & (saved[order] > 0)
    here = torch.arange(n, device=device)
    earliest = torch.full((len(total),), n, device=device).scatter_reduce(0, place, here, "amin")
    into = torch.where(merges[place], earliest[place], here)
    stands = into == here
    group = torch.where(stands, 2 * frame + (~merges[place]).long(), 2 * len(counts))
    return into, group, segment_sum(stands.long(), group, 2 * len(counts) + 1)[:-1].tolist()


def offsets_of(windows: Sequence[Windows], side: int, device: torch.device) -> Tensor:
    """Where the cells of each video begin, ``(videos,)``, ``side`` in each of its segments."""
    starts = offsets([len(each) * side for each in windows])[:-1]
    return torch.tensor(starts, dtype=torch.long).to(device, non_blocking=True)
