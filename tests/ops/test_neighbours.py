"""Nearest neighbours against a loop over queries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.ops.neighbours import bag_means, bags, nearest, products

segments = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 7)), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(segments, st.integers(1, 9), st.integers(1, 60), st.integers(0, 99))
def test_as_a_loop(sizes: list[tuple[int, int]], k: int, cells: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts, n_points = zip(*sizes)
    queries, points, values = (torch.randn(n, 3, generator=generator) for n in (sum(counts), *[sum(n_points)] * 2))
    index, lengths = nearest(queries, counts, points, n_points, k, cells), bags(counts, n_points, k)
    means = bag_means(values, index, lengths)
    q = p = at = 0
    for n, m in sizes:
        for row in range(q, q + n):
            distance = [(float((queries[row] - points[j]).norm()), j) for j in range(p, p + m)]
            expected = [j for _, j in sorted(distance)[:k]]
            assert index[at : at + len(expected)].tolist() == expected
            assert lengths[row] == len(expected)
            at += len(expected)
            torch.testing.assert_close(means[row], sum(values[j] for j in expected) / len(expected))
        q, p = q + n, p + m
    assert at == len(index)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_huge_channels_do_not_hide_the_others(dtype: torch.dtype) -> None:
    """A residual stream has a few channels a thousand times as large as the rest, nearly the same in every token."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(64, 32, generator=generator)
    points[:, 3] += 1_000
    points = points.to(dtype)
    index = nearest(points, (64,), points, (64,), 4)
    distance = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(index.view(64, 4)[:, 0], torch.arange(64))
    expected = distance.topk(4, largest=False).values
    torch.testing.assert_close(distance.gather(1, index.view(64, 4)), expected, rtol=1e-3, atol=1e-3)


def test_of_nothing() -> None:
    none, points = torch.empty(0, 4), torch.randn(3, 4)
    index = nearest(none, (0, 0), points, (1, 2), 2)
    assert index.shape == (0,)
    assert bag_means(points, index, []).shape == (0, 4)
    assert products((0, 0), (1, 2), 4) == 0
    assert products((2, 5), (3, 1), 4) == 2 * 2 * 5 * 3 * 4
