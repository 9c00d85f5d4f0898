"""Selectors against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_cases import budgets, cloud, cosine, lattice, lengths, quick, rows, seeds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.lab.bench.memory import LiveTensors
from foveate.ops import select

Budgets = tuple[list[int], list[int]]


def top_k_by_loop(score: Tensor, counts: list[int], k: list[int]) -> list[int]:
    return [i for span, n in zip(rows(counts), k) for i in sorted(sorted(span, key=lambda i: -float(score[i]))[:n])]


@quick
@given(budgets(), seeds)
def test_top_k(budget: Budgets, seed: int) -> None:
    counts, k = budget
    for score in (cloud(sum(counts), seed), cloud(sum(counts), seed).round()):  # the second has ties
        keep = select.top_k(score, counts, k)
        assert keep.dtype == torch.long
        assert keep.tolist() == top_k_by_loop(score, counts, k)


@quick
@given(lengths, seeds)
def test_best_first_and_rank_within(counts: list[int], seed: int) -> None:
    for score in (cloud(sum(counts), seed), cloud(sum(counts), seed).round()):  # the second has ties
        order = [i for span in rows(counts) for i in sorted(span, key=lambda i: -float(score[i]))]
        assert select.best_first(score, counts).tolist() == order
        rank = {i: place for span in rows(counts) for place, i in enumerate(order[span.start : span.stop])}
        found = select.rank_within(score, counts)
        assert found.dtype == torch.long
        assert found.tolist() == [rank[i] for i in range(sum(counts))]


def test_ties_go_to_the_earlier_token() -> None:
    assert select.top_k(torch.tensor([1.0, 1, 1, 2, 2]), [3, 2], [2, 1]).tolist() == [0, 1, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_top_k_of_half_precision_scores(dtype: torch.dtype) -> None:
    score = cloud(300, 0).to(dtype)
    assert select.top_k(score, [100, 200], [10, 50]).tolist() == top_k_by_loop(score, [100, 200], [10, 50])


@quick
@given(budgets())
def test_stride(budget: Budgets) -> None:
    counts, k = budget
    expected = [
        span.start + math.floor((i + 0.5) * len(span) / n) for span, n in zip(rows(counts), k) for i in range(n)
    ]
    keep = select.stride(counts, k)
    assert keep.dtype == torch.long
    assert keep.tolist() == expected
    assert len(set(expected)) == len(expected)


def farthest_by_loop(features: Tensor, counts: list[int], k: list[int]) -> list[int]:
    chosen = []
    for span, n in zip(rows(counts), k):
        distance = {(i, j): 1 - cosine(features[i], features[j]) for i in span for j in span}
        nearest = {i: min((distance[i, j] for j in span if j != i), default=0.0) for i in span}
        picked: list[int] = []
        while len(picked) < n:
            reach = {i: min(distance[i, j] for j in picked) if picked else nearest[i] for i in span if i not in picked}
            picked.append(max(reach, key=lambda i: reach[i]))  # the earliest of the farthest
        chosen += sorted(picked)
    return chosen


@quick
@given(budgets(), seeds)
def test_farthest_point(budget: Budgets, seed: int) -> None:
    counts, k = budget
    for features in (cloud(sum(counts), seed, 5), lattice(sum(counts), seed)):  # the second has ties
        expected = farthest_by_loop(features, counts, k)
        for cells in (None, 40, 1):  # all distances are held; they are made in parts; row by row
            keep = select.farthest_point(features, counts, k, cells)
            assert keep.dtype == torch.long
            assert keep.tolist() == expected


def test_farthest_point_holds_no_more_distances_than_it_may() -> None:
    features = cloud(600, 0, 4)
    most = []
    for cells in (None, 6000):
        with LiveTensors([features]) as live:
            keep = select.farthest_point(features, [600], [20], cells)
        most.append(live.peak)
        assert torch.equal(keep, select.farthest_point(features, [600], [20]))
    assert most[0] > 4 * 600 * 600
    assert most[1] < most[0] / 8


def test_flops_of_farthest_point_are_those_of_a_run() -> None:
    features = cloud(70, 0, 4)
    for k in ([5, 9], [40, 30], [0, 0]):
        for cells in (None, 100):
            with FlopCounterMode(display=False) as counter:
                select.farthest_point(features, [40, 30], k, cells)
            assert counter.get_total_flops() == select.farthest_point_flops([40, 30], k, 4, cells)


def test_farthest_point_of_equal_tokens_keeps_the_budget() -> None:
    keep = select.farthest_point(torch.full((9, 7), 0.3), [6, 1, 2], [4, 1, 2])
    assert len(set(keep.tolist())) == 7
    assert [sum(a <= i < b for i in keep.tolist()) for a, b in ((0, 6), (6, 7), (7, 9))] == [4, 1, 2]


def test_a_segment_is_selected_alike_in_any_company() -> None:
    counts, k = [12, 1, 30, 0, 7], [5, 1, 9, 0, 7]
    features = cloud(sum(counts), 3, 8)
    together = select.farthest_point(features, counts, k).tolist()
    alone = [
        span.start + i
        for span, n in zip(rows(counts), k)
        for i in select.farthest_point(features[list(span)], [len(span)], [n]).tolist()
    ]
    assert together == alone


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_farthest_point_computes_in_single_precision(dtype: torch.dtype) -> None:
    features = cloud(40, 1, 16).to(dtype)
    expected = select.farthest_point(features.float(), [25, 15], [6, 5])
    assert torch.equal(select.farthest_point(features, [25, 15], [6, 5]), expected)


@quick
@given(budgets())
def test_first_and_last_of_each_group(budget: Budgets) -> None:
    counts, k = budget
    for place in ("first", "last"):
        expected = []
        for span, n in zip(rows(counts), k):
            for j in range(n):
                group = [i for i in span if j * len(span) // n <= i - span.start < (j + 1) * len(span) // n]
                expected.append(group[0] if place == "first" else group[-1])
        assert select.stride(counts, k, place=place).tolist() == expected


@quick
@given(budgets(), seeds)
def test_nested(budget: Budgets, seed: int) -> None:
    """Whole levels from the top down, then the last of each group of the level that does not fit."""
    counts, k = budget
    level = torch.randint(4, (sum(counts),), generator=torch.Generator().manual_seed(seed))
    expected: list[int] = []
    for span, n in zip(rows(counts), k):
        chosen: list[int] = []
        for wanted in (3, 2, 1, 0):
            members = [i for i in span if level[i] == wanted]
            room = min(len(members), n - len(chosen))
            chosen += [members[(j + 1) * len(members) // room - 1] for j in range(room)]
        expected += sorted(chosen)
    assert select.nested(level, counts, k, 4).tolist() == expected


@quick
@given(st.sets(st.integers(0, 11)), st.integers(12, 14))
def test_complement_and_rank(chosen: set[int], n: int) -> None:
    indices = torch.tensor(sorted(chosen), dtype=torch.long)
    assert select.complement(indices, n).tolist() == [i for i in range(n) if i not in chosen]
    assert select.rank(indices, n).tolist() == [
        sorted(chosen).index(i) if i in chosen else len(chosen) for i in range(n)
    ]
