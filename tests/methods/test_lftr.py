"""LFTR against plain loops over its two weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

from foveate import LFTR, Host, Site
from foveate.errors import ConfigError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.serving.plan import make_plan


@settings(max_examples=40, deadline=None)
@given(grids, st.integers(0, 1000), st.sampled_from([0.0, 0.1, 1.0]), st.booleans(), st.booleans())
def test_scores_by_loops(grid: list[tuple[int, int, int]], seed: int, floor: float, thinned: bool, added: bool) -> None:
    tokens = tokens_at(grid, seed)
    if thinned:  # perhaps a frame has no token left
        left = tokens.keep_mask(torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed)) > 0.7)
        tokens = tokens.select(left.keep, left.counts)
    method = LFTR(floor=floor, joined="sum") if added else LFTR(floor=floor)
    found, expected, start = method.score(tokens, Site.entry(0.5)), [], 0
    before = torch.zeros(6)
    firsts = {clip[0] for clip in tokens.spans.clips}
    for span, n in enumerate(tokens.counts):
        x = tokens.hidden[start : start + n]
        mean = x.mean(0) if n else torch.zeros(6)
        likeness = float(torch.cosine_similarity(mean, before, dim=0))
        weight = 1.0 if span in firsts else 1 - likeness + floor
        for token in x:
            cosines = [float(torch.cosine_similarity(token, other, dim=0)) for other in x]
            distinct = 1 - sum(cosines) / n
            expected.append(weight + distinct if added else weight * distinct)
        start, before = start + n, mean
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(grids, st.integers(0, 1000), st.sampled_from([0.0, 0.25, 0.7]), st.booleans())
def test_one_ranking_by_loops(grid: list[tuple[int, int, int]], seed: int, keep: float, still: bool) -> None:
    """All frames of a video compete, images do not; of frames and tokens that are all alike the first ones stay."""
    tokens, method = replace(tokens_at(grid, seed), pooled=True), LFTR(keep=keep)
    if still:
        tokens = replace(tokens, hidden=torch.ones_like(tokens.hidden))
    (site,) = method.sites(Host("qwen2_5_vl", 4, 6, has_cls=False))
    score, start, expected = method.score(tokens, site).tolist(), 0, []
    for n in tokens.clip_counts:
        k = max(1, int(n * keep + 0.5)) if keep else 0
        expected += sorted(sorted(range(start, start + n), key=lambda i: (-score[i], i))[:k])
        start += n
    assert method.reduce(tokens, site).keep.tolist() == expected


def test_a_frame_that_is_the_same_as_the_one_before_gives_way() -> None:
    """Half of three frames of which the second repeats the first: with no floor the second keeps nothing."""
    tokens = tokens_at([(3, 4, 4)], 2)
    hidden = tokens.hidden.clone()
    hidden[16:32] = hidden[:16]
    tokens = replace(tokens, hidden=hidden, pooled=True)
    assert LFTR(floor=0.0).reduce(tokens, Site.entry(0.5)).counts[1] == 0
    assert sum(LFTR(floor=0.0).reduce(tokens, Site.entry(0.5)).counts) == 24
    assert LFTR(floor=1.0).reduce(tokens, Site.entry(0.9)).counts[1] > 0


def test_what_cannot_be() -> None:
    model = tiny.model("qwen2_5_vl")
    with pytest.raises(ConfigError, match=r"floor=-0\.5"):
        LFTR(floor=-0.5)
    with pytest.raises(ConfigError, match="one ranking for all images of a prompt or all frames of a video"):
        make_plan(LFTR(), host_of(model), family_of(model.config), model.config)
