"""Soft choices of tokens, and what a token was worth, against plain loops and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.ops.relax import soft_top_k
from foveate.ops.rollout import rollout
from foveate.ops.select import top_k


def scores(counts: list[int], spread: float = 1.0) -> Tensor:
    return spread * torch.randn(sum(counts), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.data())
def test_gates_sum_to_the_budget(counts: list[int], data: st.DataObject) -> None:
    k = [data.draw(st.integers(0, n)) for n in counts]
    gates = soft_top_k(scores(counts, 3.0), counts, k)
    assert ((gates >= 0) & (gates <= 1)).all()
    for each, part, n in zip(k, gates.split(counts), counts):
        assert float(part.sum()) == pytest.approx(each, abs=1e-6)
        if each in (0, n):
            assert set(part.tolist()) <= {float(each > 0)}


def test_gradients_are_those_of_finite_differences() -> None:
    counts, k = [5, 3, 4], [2, 1, 4]
    assert torch.autograd.gradcheck(lambda x: soft_top_k(x, counts, k), scores(counts).requires_grad_(), atol=1e-6)


def test_scores_far_apart_are_the_hard_choice() -> None:
    counts, k = [6, 4], [2, 3]
    score = scores(counts, 1000.0)
    hard = torch.zeros_like(score).index_fill(0, top_k(score, counts, k), 1.0)
    torch.testing.assert_close(soft_top_k(score, counts, k), hard, atol=1e-5, rtol=0)
    half = soft_top_k(torch.randn(600).half(), [600], [3])
    assert half.dtype == torch.float32
    assert float(half.sum()) == pytest.approx(3, rel=1e-3)


def test_rollout_is_the_product_of_matrices() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.rand(2, 3, 5, 5, generator=generator) for _ in range(4)]
    gradients = [torch.randn(2, 3, 5, 5, generator=generator) for _ in maps]
    rows = torch.tensor([[0.0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    expected = torch.eye(5).expand(2, 5, 5)
    for attention, gradient in zip(maps, gradients):
        expected = expected + (attention * gradient).clamp(min=0).mean(1) @ expected
    torch.testing.assert_close(rollout(maps, gradients, rows), (rows[:, None] @ expected)[:, 0])
