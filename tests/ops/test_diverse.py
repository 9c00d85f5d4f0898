"""Greedy diverse subsets: the determinant by brute force, ragged segments, more picks than dimensions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.ops import diverse
from foveate.ops.segments import quantile

lengths = st.lists(st.integers(0, 9), min_size=1, max_size=3)


def greedy(x: torch.Tensor, quality: torch.Tensor, k: int) -> list[int]:
    """Each pick is the token with which the kernel's determinant is the largest."""
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    kernel = quality.double()[:, None] * (unit @ unit.T) * quality.double()
    chosen: list[int] = []
    for _ in range(k):
        free = [i for i in range(len(x)) if i not in chosen]
        chosen.append(max(free, key=lambda i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))))
    return sorted(chosen)


@settings(max_examples=25, deadline=None)
@given(lengths, st.integers(0, 1000), st.floats(0.0, 0.6))
def test_determinants_by_brute_force(counts: list[int], seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, k = sum(counts), [int(share * each) for each in counts]
    x, quality = torch.randn(n, 8, generator=generator), 0.2 + torch.rand(n, generator=generator)
    start, expected = 0, []
    for length, few in zip(counts, k):
        rows = slice(start, start + length)
        expected += [start + i for i in greedy(x[rows], quality[rows], few)]
        start += length
    assert diverse.determinantal(x, quality, counts, k).tolist() == expected


def test_more_picks_than_there_are_directions() -> None:
    """When two span the plane, the best qualities follow, and equal ones in order."""
    x = torch.tensor([[1.0, 0], [0, 1.0], [1.0, 1.0], [2.0, 0], [0, 0]])
    quality = torch.tensor([1.0, 0.9, 0.5, 0.5, 0.8])
    assert diverse.determinantal(x, quality, (5,), (3,)).tolist() == [0, 1, 4]
    assert diverse.determinantal(x, quality, (5,), (4,)).tolist() == [0, 1, 2, 4]
    assert diverse.determinantal(x, quality, (5,), (5,)).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=25, deadline=None)
@given(lengths, st.integers(0, 1000), st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9, 1.0]))
def test_quantiles(counts: list[int], seed: int, at: float) -> None:
    x = torch.randint(0, 9, (sum(counts),), generator=torch.Generator().manual_seed(seed)).float()
    expected = [float(part.quantile(at)) if len(part) else 0.0 for part in x.split(counts)]
    torch.testing.assert_close(quantile(x, counts, at), torch.tensor(expected))
