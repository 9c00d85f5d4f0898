"""RLT: what repeats by a plain loop, a video that stands still in the tower, and images."""

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
from foveate import RLT, Host, Site
from foveate.errors import ConfigError, FoveateError

videos = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(videos, st.integers(0, 1000), st.sampled_from([None, 0.05, 0.3]), st.booleans())
def test_what_repeats_by_loops(grid: Any, seed: int, threshold: float | None, some: bool) -> None:
    """Each patch against the one at its place a frame before; one that is not there is no repetition."""
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    x = torch.randint(0, 3, (len(tokens), 4), generator=generator) * 0.1
    if some:
        reduction = tokens.keep_mask(torch.rand(len(tokens), generator=generator) < 0.8)
        tokens, x = tokens.select(reduction.keep, reduction.counts), x[reduction.keep]
    tokens = replace(tokens, signals={"patches": x}, pooled=True)
    cut, expected, frame = 0.1 if threshold is None else threshold, [], 0
    at = {(s, i): row for s, i, row in zip(tokens.segment.tolist(), tokens.index.tolist(), x)}
    for n_frames, _, _ in grid:
        for span in range(frame, frame + n_frames):
            for i, (s, cell) in enumerate(zip(tokens.segment.tolist(), tokens.index.tolist())):
                before = at.get((span - 1, cell)) if span > frame else None
                if s == span and (before is None or float((x[i] - before).abs().mean()) >= cut - 1e-7):
                    expected.append(i)
        frame += n_frames
    found = RLT(threshold=threshold).reduce(tokens, Site.tower(0)).keep.tolist()
    start = 0
    for n in tokens.pool_counts:  # where nothing is new, the best one stays
        if n and not any(start <= i < start + n for i in expected):
            expected.append(next(i for i in found if start <= i < start + n))
        start += n
    near = [i for i in set(found) ^ set(expected) if i in found or i in expected]
    assert not near or all(_is_near(at, tokens, x, i, cut) for i in near)


def _is_near(at: Any, tokens: Any, x: torch.Tensor, i: int, cut: float) -> bool:
    """Rounding decides at the threshold."""
    before = at.get((tokens.segment[i].item() - 1, tokens.index[i].item()))
    return before is not None and abs(float((x[i] - before).abs().mean()) - cut) < 1e-6


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_still_video_leaves_its_first_frame(family: str) -> None:
    """Before the tower's blocks, so that these are spared; of noise everything stays."""
    model, batch = tiny.model(family), tiny.inputs(family, tiny.GROUP[family].VIDEO_ROWS[family][:1])
    pixels = next(name for name in batch if name.startswith("pixel_values_videos"))
    with torch.no_grad():
        stock = model(**batch).logits
        with foveate.compress(model, RLT()) as handle:
            assert torch.equal(model(**batch).logits, stock)
            model(**batch | {pixels: torch.ones_like(batch[pixels])})
            visit, report = handle.report().visits[0], handle.report()
    assert visit.after[0] == visit.before[0]
    assert not any(visit.after[1:])
    assert report.flops["tower"] < report.full_flops["tower"]


def test_where_it_is_refused() -> None:
    host = Host("llava", 23, 32, has_cls=True)
    assert [(site.at, site.layer, site.keep) for site in RLT(keep=0.5).sites(host)] == [("tower", 0, 0.5)]
    assert [(site.at, site.keep) for site in RLT(keep=0.0).sites(host)] == [("tower_output", 0.0)]
    with pytest.raises(FoveateError, match="rlt compares frames of one video"):
        foveate.compress(tiny.model("llava_onevision"), RLT())
    with pytest.raises(ConfigError, match=r"threshold=-0.5 is not a difference: give 0.0 or more"):
        RLT(threshold=-0.5)
