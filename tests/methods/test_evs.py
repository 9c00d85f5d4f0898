"""EVS: what changes by a plain loop, a video that stands still, first frames that do not fit; where it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import tokens_at

import foveate
from foveate import EVS, Host, Site
from foveate.errors import ConfigError, FoveateError
from foveate.serving.plan import make_plan

videos = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3)


@settings(max_examples=30, deadline=None)
@given(videos, st.integers(0, 1000), st.sampled_from([0.02, 0.2, 0.5, 0.8, 1.0]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float) -> None:
    """Of few different cells, so that many stand still and are equal."""
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    kinds = torch.eye(6)[torch.randint(0, 6, (len(tokens),), generator=generator)]
    tokens = replace(tokens, hidden=kinds, pooled=True)
    start, expected, span = 0, [], 0
    for (n_frames, height, width), kept in zip(grid, tokens.pool_budget(keep)):
        cells = height * width
        members = list(range(start, start + n_frames * cells))
        at = {(tokens.segment[i].item(), tokens.index[i].item()): i for i in members}
        few = min(kept, cells)
        best = {start + (2 * i + 1) * cells // (2 * few) for i in range(few)}
        rank = {}
        for i in members:
            frame, cell = tokens.segment[i].item(), tokens.index[i].item()
            before = at.get((frame - 1, cell))
            rank[i] = 1 - float(kinds[i] @ kinds[before]) if frame > span and before is not None else 3.0
            rank[i] = 4.0 if i in best else rank[i]
        expected += sorted(sorted(members, key=lambda i: (-rank[i], i))[:kept])
        start, span = start + len(members), span + n_frames
    assert EVS().reduce(tokens, Site.entry(keep)).keep.tolist() == expected


def test_golden_values() -> None:
    """One cell of a still video changes in its third frame."""
    tokens = tokens_at([(3, 1, 3)], 0)
    tokens = tokens.select((tokens.segment * 9 + tokens.index).argsort(), tokens.counts)
    hidden = torch.eye(3, 6).repeat(3, 1)
    hidden[7] = torch.eye(6)[5]
    reduction = EVS().reduce(replace(tokens, hidden=hidden, pooled=True), Site.entry(4 / 9))
    assert reduction.keep.tolist() == [0, 1, 2, 7]
    assert reduction.counts == (3, 0, 1)


def test_where_it_is_refused() -> None:
    with pytest.raises(FoveateError, match="evs compares frames of one video"):
        foveate.compress(tiny.model("gemma4"), EVS())
    family: Any = foveate.list_families()["qwen2_5_vl"]
    host = Host("qwen2_5_vl", tiny.BLOCKS, tiny.LAYERS, False, frames=frozenset({"lm_entry"}))
    with pytest.raises(ConfigError, match="evs has one ranking for all images of a prompt or all frames of a video"):
        make_plan(EVS(), host, family, tiny.config("qwen2_5_vl"))
