"""Hypothesis strategies for packed segments, and the plain loops' view of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

quick = settings(max_examples=60, deadline=None)

seeds = st.integers(0, 2**31)
lengths = st.lists(st.integers(0, 7), max_size=5)  # empty and single-token segments included


@st.composite
def budgets(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Tokens per segment, and how many of them survive: none, all, or some."""
    counts = draw(lengths)
    return counts, [draw(st.integers(0, n)) for n in counts]


def rows(counts: list[int]) -> Iterator[range]:
    """The packed indices of each segment."""
    start = 0
    for n in counts:
        yield range(start, start + n)
        start += n


def lattice(n: int, seed: int, width: int = 3) -> Tensor:
    """``(n, width)`` vectors along the axes, zero now and then: cosines are exactly -1, 0 or 1, so ties abound."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.randint(width, (n,), generator=generator)
    scale = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])[torch.randint(5, (n,), generator=generator)]
    return torch.nn.functional.one_hot(axis, width) * scale[:, None]


def cloud(n: int, seed: int, *shape: int) -> Tensor:
    """``(n, *shape)`` normal numbers."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two vectors; 0 where one is zero."""
    norms = float(a.double().norm() * b.double().norm())
    return float(a.double() @ b.double()) / norms if norms else 0.0
