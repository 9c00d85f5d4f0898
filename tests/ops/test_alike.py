"""A large segment among many small ones: each is what it is alone, and costs what it needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from segment_cases import cloud
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.lab.bench.memory import LiveTensors
from foveate.ops import clusters, merge, neighbours, pairs, select
from foveate.ops.segments import alike, offsets, padded_pairs, segment_ids

COUNTS = [3, 200, 2, 5, 1, 4, 0, 2, 3, 7, 1, 6]
WIDTH = 8


def few(counts: list[int], share: float) -> list[int]:
    return [round(n * share) for n in counts]


def farthest(x: Tensor, counts: list[int]) -> tuple[Tensor, int]:
    k = few(counts, 0.4)
    return select.farthest_point(x, counts, k), select.farthest_point_flops(counts, k, WIDTH)


def partners(x: Tensor, counts: list[int]) -> tuple[Tensor, int]:
    r = [n // 3 for n in counts]
    source, target = merge.bipartite_match(x, counts, r)
    partner = torch.full((len(x),), -1).index_copy(0, source, target)
    return partner, merge.bipartite_flops(counts, r, WIDTH)


def targets(x: Tensor, counts: list[int]) -> tuple[Tensor, int]:
    k = few(counts, 0.3)
    chosen = select.stride(counts, k)
    nearest = merge.nearest_target(x, counts, chosen, k)
    named = torch.nn.functional.pad(chosen, (0, 1), value=-1)[nearest]
    return named, 2 * padded_pairs(counts, k) * WIDTH


def near(x: Tensor, counts: list[int]) -> tuple[Tensor, int]:
    k = few(counts, 0.5)
    kept = select.stride(counts, k)
    rest = select.complement(kept, len(x))
    away = [n - kept if kept else 0 for n, kept in zip(counts, k)]
    rest = torch.cat([part for part, n in zip(rest.split([n - m for n, m in zip(counts, k)]), away) if n] or [rest[:0]])
    index = neighbours.nearest(x[rest], away, x[kept], k, 3)
    return kept[index], neighbours.products(away, k, WIDTH)


def scored(x: Tensor, counts: list[int]) -> tuple[Tensor, int]:
    alike = pairs.cosines(x, counts)
    source, target = merge.strongest(alike, lambda value, row, column: value.square(), counts, [n // 3 for n in counts])
    return torch.full((len(x),), -1).index_copy(0, source, target), pairs.products(counts, WIDTH, 1)


def peaks(x: Tensor, counts: list[int]) -> tuple[Tensor, int]:
    _, centre = clusters.around_peaks(x, counts, segment_ids(counts), few(counts, 0.3), neighbours=3)
    return torch.where(centre < len(x), centre, -1), clusters.products(counts, WIDTH)


@pytest.mark.parametrize("op", [farthest, partners, targets, near, scored, peaks], ids=lambda op: op.__name__)
def test_small_segments_beside_a_large_one(op: Callable[[Tensor, list[int]], tuple[Tensor, int]]) -> None:
    x, start = cloud(sum(COUNTS), 0, WIDTH), offsets(COUNTS)
    with FlopCounterMode(display=False) as counter:
        together, flops = op(x, COUNTS)
    assert counter.get_total_flops() == flops
    alone = []
    for n, first in zip(COUNTS, start):
        found = op(x[first : first + n], [n])[0] if n else together[:0]
        alone.append(torch.where(found < 0, found, found + first))
    assert together.tolist() == torch.cat(alone).tolist()
    # Twelve times as many small ones cost little beside the large one, in products and in memory.
    many = [*COUNTS, *[4] * 120]
    assert op(cloud(sum(many), 0, WIDTH), many)[1] < 1.5 * flops
    peaks = []
    for counts in (COUNTS, many):
        rows = cloud(sum(counts), 0, WIDTH)
        with LiveTensors([rows]) as live:
            op(rows, counts)
        peaks.append(live.peak)
    assert peaks[1] < 3 * peaks[0]


def test_groups_of_like_lengths() -> None:
    assert alike([5, 3, 0, 4]) == [[0, 1, 2, 3]]
    assert alike([]) == [[]]
    assert alike([64, 1, 3, 2, 1, 1, 1, 1]) == [[0], [1, 4, 5, 6, 7], [2, 3]]
    assert padded_pairs([64, 1, 3, 2, 1, 1, 1, 1]) == 64 * 64 + 5 + 2 * 9


def test_the_largest_of_long_rows() -> None:
    value = torch.randn(2, 3, 1100).masked_fill(torch.rand(2, 3, 1100) < 0.1, -torch.inf)
    value[0, 0, :800] = 1.0
    for k in (1, 4, 5):
        assert torch.equal(pairs.largest(value, k), value.topk(k).values)
    assert pairs.largest(value[..., :3], 5).shape == (2, 3, 3)
