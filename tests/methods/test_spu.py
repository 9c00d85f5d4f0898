"""The pruner's scores against plain sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

from foveate import SPU, Site

quick = settings(max_examples=40, deadline=None)


@quick
@given(grids, st.integers(0, 1000))
def test_a_wide_open_filter_ranks_by_norm(grid: list[tuple[int, int, int]], seed: int) -> None:
    tokens = tokens_at(grid, seed)
    method = SPU(mode="low_frequency_energy", filter="notch", cutoff=1.0, normalise=False)
    score = method.score(tokens, Site("decoder", 1, 0.5))
    torch.testing.assert_close(score, tokens.hidden.abs().sum(-1))


@quick
@given(grids, st.integers(0, 1000), st.sampled_from(["residual", "low_frequency_energy"]), st.booleans())
def test_scores_by_loops(grid: list[tuple[int, int, int]], seed: int, mode: Any, normalise: bool) -> None:
    """The Gaussian low-pass of a mirrored signal, as cosine sums (its DCT-II)."""
    tokens = tokens_at(grid, seed, channels=3)
    method = SPU(mode=mode, filter="gaussian", cutoff=0.4, normalise=normalise)
    score = method.score(tokens, Site("decoder", 1, 0.5))
    for span in range(len(tokens.counts)):
        x = tokens.hidden[tokens.segment == span].double()
        if normalise:
            x = torch.stack([row / (row.square().mean() + 1e-6).sqrt() for row in x])
        n = len(x)
        i = torch.arange(n).double()
        low = torch.zeros_like(x)
        for k in range(n):
            wave = torch.cos(torch.pi * k * (i + 0.5) / n)
            gain = torch.exp(torch.tensor(-((k / n) ** 2) / (2 * 0.4**2)))
            low += wave[:, None] * (wave @ x) * gain * (1 if k == 0 else 2) / n
        wanted = (x - low).norm(dim=-1) if mode == "residual" else low.abs().sum(-1)
        torch.testing.assert_close(score[tokens.segment == span].double(), wanted, rtol=1e-3, atol=1e-4)


def test_channels_may_come_in_any_order() -> None:
    tokens, order = tokens_at([(1, 4, 5)], 1), torch.tensor([3, 0, 5, 4, 1, 2])
    site = Site("decoder", 1, 0.5)
    for method in (SPU(), SPU(mode="low_frequency_energy", filter="notch", cutoff=0.85)):
        permuted = replace(tokens, hidden=tokens.hidden[:, order])
        torch.testing.assert_close(method.score(permuted, site), method.score(tokens, site))


@pytest.mark.parametrize("mirror", [True, False])
def test_the_earlier_of_two_stays(mirror: bool) -> None:
    """Both differ from any low-pass image by as much; what rounding says differs from seed to seed."""
    for seed in range(20):
        tokens = tokens_at([(1, 2, 1), (1, 2, 3), (1, 1, 2)], seed, channels=32)
        method = SPU(mirror=mirror)
        score = method.score(tokens, Site("decoder", 1, 0.5))
        assert score[0] == score[1]
        assert score[-2] == score[-1]
        kept = method.reduce(tokens, Site("decoder", 1, 0.5)).keep.tolist()
        assert (kept[0], kept[-1]) == (0, 8)


def test_of_two_that_a_notch_leaves_differently_the_farther_stays() -> None:
    """A notch of cut-off 0 lets little of the mean pass, so what it leaves of two tokens is not the same."""
    tokens = replace(tokens_at([(1, 1, 2)], 0), index=torch.arange(2), hidden=torch.tensor([[1.0, 1.0], [5.0, 3.0]]))
    method = SPU(filter="notch", cutoff=0.0, normalise=False, mirror=False)
    assert method.reduce(tokens, Site("decoder", 1, 0.5)).keep.tolist() == [1]


@pytest.mark.parametrize("along", ["tokens", "channels"])
def test_spans_without_tokens(along: Any) -> None:
    tokens = tokens_at([(1, 1, 1), (1, 2, 3)], 0)
    nothing = tokens.select(torch.tensor([], dtype=torch.long), (0, 0))
    few = tokens.select(torch.tensor([0]), (1, 0))
    for here in (nothing, few):
        reduction = SPU(along=along).reduce(here, Site("decoder", 1, 0.5))
        assert reduction.counts == tuple(here.counts)
