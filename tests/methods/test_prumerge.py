"""PruMerge: outliers, what they take in and the sum of the rest by plain loops; its one head; the plus; serving."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import Host, PruMerge, Site
from foveate.errors import ConfigError
from foveate.serving.plan import Item, make_plan

FAMILY: Any = foveate.list_families()["llava"]
HOST = Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True)


@settings(max_examples=25, deadline=None)
@given(
    grids,
    st.integers(0, 1000),
    st.sampled_from([None, 0.05, 0.3, 0.6, 1.0]),
    st.booleans(),
    st.sampled_from([1, 4, 32]),
)
def test_survivors_by_loops(grid: Any, seed: int, keep: float | None, plus: bool, near: int) -> None:
    """Few different scores, so that many are equal; in a video without outliers one token stays, not one of each frame."""
    grid = [(1, *shape) for _, *shape in grid]
    tokens, method = tokens_at(grid, seed), PruMerge(keep=keep, plus=plus, near=near)
    paid = torch.randint(1, 5, (len(tokens),), generator=torch.Generator().manual_seed(seed)).float() ** 3
    seen = replace(tokens, signals={"received": paid, "keys": tokens.keys})
    reduction = method.reduce(seen, Site.output(1.0 if keep is None else keep))
    found = dict(zip(reduction.keep.tolist(), reduction.hidden))  # type: ignore[arg-type]
    keys, start, expected = tokens.keys.flatten(1), 0, {}
    for n, kept in zip(tokens.counts, tokens.budget(keep or 1.0)):
        members = list(range(start, start + n))
        share = paid[members] / paid[members].sum()
        a = dict(zip(members, share.tolist()))
        order = sorted(members, key=lambda i: (-a[i], i))
        if keep is None:
            q1, q3 = np.percentile(share, [25, 75])
            best = [i for i in order if a[i] > q3 + 1.5 * (q3 - q1) + 1e-6] or order[:1]
            step = max(1, n // len(best) // 3)
            best += [i for i in members if plus and int(tokens.index[i]) % step == 0 and i not in best]
            rest = len(best) < n
        else:
            rest = 1 < kept < n
            few = kept - rest
            best = order[: int(few / 2 + 0.5) if plus else few]
            others = [i for i in members if i not in best]
            more = few - len(best)
            best += [others[(2 * i + 1) * len(others) // (2 * more)] for i in range(more)]
        left = [i for i in order if i not in best]
        for i in best:
            alike = {j: float(torch.cosine_similarity(keys[i], keys[j], dim=0)) for j in members if j != i}
            close = sorted(alike, key=lambda j: -alike[j])[:near] if left else []
            expected[i] = tokens.hidden[i] + sum((a[j] * tokens.hidden[j] for j in close), torch.zeros(6))
        if rest:
            expected[left[0]] = sum((a[j] * tokens.hidden[j] for j in left), torch.zeros(6))
        start += n
    assert sorted(found) == sorted(expected)
    for i, x in expected.items():
        torch.testing.assert_close(found[i], x, rtol=1e-4, atol=1e-5)


def test_one_head_is_made_of_several() -> None:
    """The softmax over the products of all channels, but for the share that the CLS token has itself."""
    generator = torch.Generator().manual_seed(0)
    tokens = tokens_at([(1, 3, 4)], 0)
    q, k = torch.randn(4, 5, generator=generator), torch.randn(13, 4, 5, generator=generator)
    rows = torch.einsum("hd,nhd->nh", q, k).div(5**0.5).softmax(0)[1:]
    whole = (k.flatten(1) @ q.flatten() / 20**0.5).softmax(0)[1:]
    found = PruMerge().attention(replace(tokens, signals={"cls_row": rows}))
    torch.testing.assert_close(found, whole / whole.sum())


def test_an_image_that_stays_whole_is_as_it_was() -> None:
    tokens = tokens_at([(1, 2, 2), (1, 1, 1)], 0)
    seen = replace(tokens, signals={"received": torch.rand(5), "keys": tokens.keys})
    reduction = PruMerge(keep=1.0).reduce(seen, Site.output(1.0))
    assert reduction.hidden is not None
    assert torch.equal(reduction.hidden, tokens.hidden)


def test_no_fewer_than_none_are_taken_in() -> None:
    assert PruMerge(near=0).near == 0
    with pytest.raises(ConfigError, match=r"near=-1 is not a number of tokens: give 0\.0 or more"):
        PruMerge(near=-1)


def test_what_is_served() -> None:
    with pytest.raises(ConfigError, match="prumerge decides by the content of an image how many tokens stay"):
        make_plan(PruMerge(), HOST, FAMILY, tiny.config("llava"))
    plan = make_plan(PruMerge(keep=0.25, plus=True), HOST, FAMILY, tiny.config("llava"))
    assert plan.tower_counts(Item(((1, 6, 6),), ((1, 6, 6),))) == (9,)
