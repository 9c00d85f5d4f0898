"""Frames of a video: which token of another frame shows the same cell, and over which frames cells stand still."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.ops.clusters import around_peaks
from foveate.ops.segments import offsets, segment_ids, segment_mean, segment_sum, to_padded
from foveate.ops.select import top_k

_CELLS = 1 << 24  # similarities held at once (64 MB)

Windows = list[tuple[int, int]]  # the first and the last frame of each


def cells_of(index: Tensor, counts: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Number the cell of each token over all segments: ``(N,)`` int64.

    Args:
        index: ``(N,)`` int64, the cell of each token, from 0 to the ``cells`` of its segment less one.
        counts: tokens per segment, sums to ``N``.
        cells: cells per segment, those without a token too.
    """
    start = torch.tensor(offsets(cells)[:-1], dtype=torch.long).to(index.device, non_blocking=True)
    return start[segment_ids(counts, index.device)] + index


def tokens_at(cell: Tensor, n_cells: int) -> Tensor:
    """Return the token at each cell, ``(n_cells + 1,)``, where ``cell (N,)`` is that of each token; ``N``: there is none."""
    token = torch.full((n_cells + 1,), len(cell), device=cell.device)
    return token.index_copy(0, cell, torch.arange(len(cell), device=cell.device))


def same_cell(index: Tensor, counts: Sequence[int], cells: Sequence[int], other: Sequence[int]) -> Tensor:
    """Find for each token the one at the same cell of another segment.

    Args:
        index, counts, cells: of `cells_of`.
        other: for each segment, which one to look in, one of as many cells; -1: in none.

    Returns:
        ``(N,)`` int64, packed indices; ``N`` where there is no such token.
    """
    start = offsets(cells)
    first = torch.tensor([start[each] if each >= 0 else -1 for each in other], dtype=torch.long)
    there = first.to(index.device, non_blocking=True)[segment_ids(counts, index.device)]
    token = tokens_at(cells_of(index, counts, cells), start[-1])
    return token[torch.where(there < 0, start[-1], there + index)]  # the last cell is of no segment


def cosine_with(features: Tensor, other: Tensor, missing: float) -> Tensor:
    """Cosine of each token with another one: ``(N,)``, in fp32 at least.

    Args:
        features: ``(N, C)``.
        other: ``(N,)`` int64, packed indices; ``N``: there is none, and the cosine is ``missing``.
    """
    n = len(features)
    unit = torch.nn.functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
    alike = (unit * unit[other.clamp(max=max(n - 1, 0))]).sum(-1).clamp(max=1)  # of equal ones no more, by rounding
    return torch.where(other < n, alike, missing)


def alike_in_place(
    features: Tensor, index: Tensor, counts: Sequence[int], cells: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> Tensor:
    """Return the mean cosine of the tokens at the same cells of two frames, for each of several ``pairs``: ``(P,)``.

    Args:
        features: ``(N, C)``.
        index, counts, cells: of `cells_of`.
        pairs: an earlier and a later frame each, no later one twice.
    """
    before, n = [-1] * len(counts), len(features)
    for earlier, later in pairs:
        before[later] = earlier
    other, segment = same_cell(index, counts, cells, before), segment_ids(counts, index.device)
    alike, there = cosine_with(features, other, missing=0.0), (other < n).float()
    total, size = segment_sum(torch.stack([alike, there], 1), segment, len(counts)).unbind(1)
    return (total / size.clamp(min=1))[torch.tensor([later for _, later in pairs]).to(total.device, non_blocking=True)]


def before_in_video(index: Tensor, videos: Sequence[int], cells: int) -> Tensor:
    """Find for each token the one before it at the same cell of its video, in the last frame that has one.

    Args:
        index: ``(N,)`` int64, the cell of each token in its frame, below ``cells``; frames stand one after another.
        videos: tokens per video, sums to ``N``.

    Returns:
        ``(N,)`` int64, packed indices; ``N`` where there is no such token.
    """
    place = segment_ids(videos, index.device) * cells + index
    order = place.argsort(stable=True)
    same = place[order][1:] == place[order][:-1]
    found = torch.where(same, order[:-1], len(order))
    return torch.full_like(order, len(order)).index_copy(0, order[1:], found)


def first_of_runs(before: Tensor, joining: Tensor, longest: int) -> Tensor:
    """Tell which token each one becomes part of when some join the one before them, and that one the one before it.

    Args:
        before: ``(N,)`` of `before_in_video`.
        joining: packed indices of those that join, each of which has one before it.
        longest: tokens of a run, at most: frames of a video.

    Returns:
        ``(N,)`` int64 packed indices, its own for a token that joins none.
    """
    into = torch.arange(len(before), device=before.device).index_copy(0, joining, before[joining])
    return ends(into, longest)


def scenes(alike: Sequence[float], videos: Sequence[int], threshold: float, cuts: int) -> list[list[int]]:
    """Cut videos into scenes, between neighbours that are less alike than a threshold, and between the least alike in any case.

    Args:
        alike: for each frame, counted over all videos, how much it is like the one before; of the first of a video nobody asks.
        videos: frames of each.
        threshold: frames that are less alike are of two scenes.
        cuts: how many of the least alike neighbours of a video are.

    Returns:
        the frames of each scene.
    """
    found: list[list[int]] = []
    for first, n in zip(offsets(videos), videos):
        least = sorted(range(first + 1, first + n), key=lambda frame: alike[frame])[:cuts]
        for frame in range(first, first + n):
            if frame == first or frame in least or alike[frame] < threshold:
                found.append([])
            found[-1].append(frame)
    return found


def scenes_of(
    features: Tensor, counts: Sequence[int], videos: Sequence[int], threshold: float, cuts: int
) -> list[list[int]]:
    """Cut videos into scenes by the cosines of the mean tokens of neighbouring frames; asks the device.

    Args:
        features: ``(N, C)``.
        counts: tokens per frame, sums to ``N``.
        videos, threshold, cuts: of `scenes`; above a threshold of 1 every frame is a scene.
    """
    if threshold > 1:
        return [[frame] for frame in range(len(counts))]
    mean = segment_mean(features.float(), segment_ids(counts, features.device), len(counts))
    mean = torch.nn.functional.normalize(mean, dim=-1)
    return scenes((mean * mean.roll(1, 0)).sum(-1).tolist(), videos, threshold, cuts)


def trees(
    features: Tensor,
    counts: Sequence[int],
    groups: list[list[int]],
    free: Tensor,
    threshold: float,
    kept: Sequence[int],
) -> tuple[Tensor, list[int]]:
    """Let tokens join those most like them in the frame before, which may have joined others: trees over a scene.

    Args:
        features: ``(N, C)``; similarity is the cosine.
        counts: tokens per frame, sums to ``N``.
        groups: the frames of each scene, in order (`scenes`).
        free: ``(N,)`` bool, which tokens take part.
        threshold: a token joins another if they are more alike, the most alike first, as long as enough of a scene are left.
        kept: per frame, how many are to be left in the end; those of a scene are shared out by what is left of its frames.

    Returns:
        ``(N,)`` packed indices, the root of each token, its own if it is none's; and how many are to be kept of each frame's.
    """
    alike, match = best_before(features, counts, groups, free)
    segment, index = segment_ids(counts, free.device), torch.arange(len(features), device=free.device)
    facts = segment_sum(torch.stack([free, alike > threshold], 1).long(), segment, len(counts)).tolist()
    there, near = ([sum(facts[frame][i] for frame in scene) for scene in groups] for i in (0, 1))
    budget = [sum(kept[frame] for frame in scene) for scene in groups]
    sizes = [sum(counts[frame] for frame in scene) for scene in groups]
    goes = top_k(alike, sizes, [min(n, all_ - k) for n, all_, k in zip(near, there, budget)])
    into = ends(index.index_copy(0, goes, match[goes]), max(map(len, groups), default=1))
    stands = segment_sum((free & (into == index)).long(), segment, len(counts)).tolist()
    left = [0] * len(counts)
    for scene, k in zip(groups, budget):
        room, end, given = [stands[frame] for frame in scene], 0, 0
        for frame, most in zip(scene, room):  # cumulative rounding: none gets more than it has
            end += most
            left[frame] = (2 * k * end + sum(room)) // (2 * sum(room)) - given if sum(room) else 0
            given += left[frame]
    return into, left


def best_before(
    features: Tensor, counts: Sequence[int], groups: list[list[int]], free: Tensor, cells: int = _CELLS
) -> tuple[Tensor, Tensor]:
    """Find for each token the one that is most like it in the frame before, wherever it is there.

    Args:
        features: ``(N, C)``; similarity is the cosine.
        counts: tokens per frame, sums to ``N``.
        groups: the frames of each scene, in order; those of its first one have none before them.
        free: ``(N,)`` bool, which tokens look and are looked at.
        cells: similarities held at once; at least those of one frame.

    Returns:
        ``(N,)`` cosines, in fp32, -2 where there is none; and packed indices, ``N`` where there is none.
    """
    device, n, width = features.device, len(features), max(counts, default=0)
    alike, match = torch.full((n + 1,), -2.0, device=device), torch.full((n + 1,), n, device=device)
    later = _later(groups)
    if later and width:
        unit = to_padded(torch.nn.functional.normalize(features.detach().float(), dim=-1), counts)
        name = to_padded(torch.arange(n, device=device).masked_fill(~free, n), counts, n)  # (F, P)
        for part in torch.tensor(later).split(max(1, cells // width**2)):
            here, there = (each.to(device, non_blocking=True) for each in (part, part - 1))
            cosine = (unit[here] @ unit[there].transpose(1, 2)).masked_fill_((name[there] == n)[:, None], -2.0)
            best, at = cosine.max(-1)
            found = torch.where(best > -2, name[there].gather(1, at), n)
            alike[name[here]], match[name[here]] = best, found
    alike[n], match[n] = -2.0, n
    return alike[:n], match[:n]


def best_before_flops(counts: Sequence[int], groups: list[list[int]], width: int) -> int:
    """Floating-point operations of the matrix products in `best_before` (2 per multiply-add)."""
    return 2 * len(_later(groups)) * max(counts, default=0) ** 2 * width


def _later(groups: list[list[int]]) -> list[int]:
    """Frames that have one of their scene before them."""
    return [frame for scene in groups for frame in scene[1:]]


def ends(link: Tensor, longest: int) -> Tensor:
    """Follow links from token to token to their ends, those that link to themselves: ``(N,)`` packed indices.

    Args:
        link: ``(N,)`` packed indices.
        longest: links in a chain, at most.
    """
    for _ in range(longest.bit_length()):  # each time twice as far
        link = link[link]
    return link


def clustered(
    features: Tensor,
    counts: Sequence[int],
    into: Tensor,
    group: Tensor,
    n_centres: Sequence[int],
    *,
    up_to_centres: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge tokens that have become one over time, and then those of a group that are alike, around density peaks.

    Args:
        features: ``(N, C)``.
        counts: tokens per frame, sums to ``N``.
        into: ``(N,)`` packed indices, the token that each one has become part of; it becomes the mean of these.
        group: ``(N,)`` int64, of those that are themselves; the last group has no centres, and what is in it is left alone.
        n_centres: per group, at most its members.
        up_to_centres: a density is of 7 neighbours; or, if there are fewer, of as many as the group has centres.

    Returns:
        the centres, packed indices ``(K,)``, ascending; ``(N,)`` which centre each token has become part of, ``N`` if of none;
        and ``(K, C)`` their values, the plain means of the tokens that have joined them, each of which stands for its own.
    """
    n = len(features)
    mean = segment_mean(features, into, n)
    centres, centre = around_peaks(mean, counts, group, n_centres, 7, up_to_centres=up_to_centres)
    stands = into == torch.arange(n, device=into.device)
    values = segment_mean(mean, torch.where(stands, centre, n), n + 1)[centres]
    return centres, centre[into], values
