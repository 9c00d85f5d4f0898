"""Segment bookkeeping against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_cases import cloud, lengths, quick, rows, seeds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.ops import segments


@quick
@given(lengths)
def test_offsets_ids_and_ranks(counts: list[int]) -> None:
    assert segments.offsets(counts) == [sum(counts[:i]) for i in range(len(counts) + 1)]
    assert segments.segment_ids(counts).tolist() == [s for s, n in enumerate(counts) for _ in range(n)]
    assert segments.within(counts).tolist() == [i for n in counts for i in range(n)]
    width = max(counts, default=0)
    assert segments.padded_index(counts).tolist() == [s * width + i for s, n in enumerate(counts) for i in range(n)]


@quick
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=6))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    found = segments.ranges([start for start, _ in pairs], [length for _, length in pairs])
    assert found.dtype == torch.long
    assert found.tolist() == [i for start, length in pairs for i in range(start, start + length)]


@quick
@given(lengths, seeds, st.sampled_from([(), (3,), (2, 2)]))
def test_sum_and_mean(counts: list[int], seed: int, shape: tuple[int, ...]) -> None:
    x = cloud(sum(counts), seed, *shape)
    segment = segments.segment_ids(counts)
    total, mean = (f(x, segment, len(counts)) for f in (segments.segment_sum, segments.segment_mean))
    assert total.shape == mean.shape == (len(counts), *shape)
    for s, span in enumerate(rows(counts)):
        torch.testing.assert_close(total[s], x[list(span)].sum(0))
        torch.testing.assert_close(mean[s], x[list(span)].mean(0) if len(span) else torch.zeros(shape))


@quick
@given(lengths, seeds, st.integers(1, 6))
def test_max_and_pool(counts: list[int], seed: int, width: int) -> None:
    x = cloud(sum(counts), seed)
    found = segments.segment_max(x, segments.segment_ids(counts), len(counts))
    assert found.tolist() == [float(x[list(span)].max()) if len(span) else 0.0 for span in rows(counts)]
    around = [max(float(x[j]) for j in span if abs(i - j) <= width // 2) for span in rows(counts) for i in span]
    assert segments.pool(x, counts, width).tolist() == around


def normalised_by_loop(x: Tensor, to: str) -> Tensor:
    if to == "softmax":
        return x.softmax(0)
    if to == "sum":
        return x / x.sum() if x.sum() else x * 0
    if to == "range":
        return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else x * 0
    return (x - x.mean()) / x.std(correction=0) if x.max() > x.min() else x * 0


@quick
@given(lengths, seeds, st.sampled_from(["range", "sum", "softmax", "deviation"]))
def test_normalise(counts: list[int], seed: int, to: Any) -> None:
    for x in (cloud(sum(counts), seed).double(), torch.ones(sum(counts)), torch.zeros(sum(counts))):
        found = segments.normalise(x, counts, to)
        assert found.dtype == x.dtype
        expected = [normalised_by_loop(x[list(span)], to) for span in rows(counts) if len(span)]
        torch.testing.assert_close(found, torch.cat(expected) if expected else x)


@quick
@given(lengths, seeds, st.sampled_from([0.0, -torch.inf, torch.nan]))
def test_padding(counts: list[int], seed: int, fill: float) -> None:
    x = cloud(sum(counts), seed, 2)
    padded = segments.to_padded(x, counts, fill)
    width = max(counts, default=0)
    assert padded.shape == (len(counts), width, 2)
    for s, span in enumerate(rows(counts)):
        assert torch.equal(padded[s, : len(span)], x[list(span)])
        rest = padded[s, len(span) :]
        assert torch.equal(rest.nan_to_num(7.0), torch.full_like(rest, fill).nan_to_num(7.0))
    assert torch.equal(padded.flatten(0, 1)[segments.padded_index(counts)], x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mean_of_many_half_precision_rows(dtype: torch.dtype) -> None:
    """Neither the sum nor the count may stop growing where the dtype has no more integers (256 for bfloat16)."""
    x = torch.cat([torch.zeros(3000), torch.ones(3000)]).to(dtype)[:, None]
    mean = segments.segment_mean(x, torch.zeros(6000, dtype=torch.long), 1)
    assert mean.dtype == dtype
    assert float(mean) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    x, segment = cloud(4, 0, 3).to(dtype), segments.segment_ids([3, 1])
    assert segments.segment_sum(x, segment, 2).dtype == dtype
    assert segments.segment_mean(x, segment, 2).dtype == dtype
    assert segments.to_padded(x, [3, 1]).dtype == dtype


def test_gradients() -> None:
    x, segment = cloud(5, 0, 2).double().requires_grad_(), segments.segment_ids([3, 0, 2])
    assert torch.autograd.gradcheck(lambda x: segments.segment_sum(x, segment, 3), x)
    assert torch.autograd.gradcheck(lambda x: segments.to_padded(x, [3, 0, 2]), x)
    segments.segment_mean(x, segment, 3).sum().backward()
    share = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])[:, None].expand(5, 2)
    torch.testing.assert_close(x.grad, share.double(), rtol=1e-6, atol=1e-6)  # means are taken in single precision


@pytest.mark.parametrize("n", [0, 3, 4, 5, 13])
def test_products_of_all_rows_are_computed_once_for_a_pair(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_STRIP", 4)
    x = torch.randn(2, n, 3)
    with FlopCounterMode(display=False) as counter:
        found = segments.gram(x)
    torch.testing.assert_close(found, x @ x.transpose(1, 2))
    assert torch.equal(found, found.transpose(1, 2)) or n <= 4
    assert counter.get_total_flops() == 2 * 3 * segments.gram_pairs([n, n])
    assert segments.gram_pairs([n, n]) <= 2 * n * n
