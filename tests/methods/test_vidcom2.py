"""VidCom2: shares of frames and what is unlike the rest by a plain loop; a rare frame keeps more; serving."""

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
from foveate import Host, Site, VidCom2
from foveate.errors import ConfigError
from foveate.serving.plan import make_plan

videos = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3)


def near(x: torch.Tensor) -> torch.Tensor:
    """How near each row is to the mean of all of them."""
    away = (x - x.mean(0)).square().sum(-1)
    return sum((torch.exp(-away / (2 * width)) for width in (1 / 8, 1 / 4, 1 / 2, 1, 2)), torch.zeros(len(x)))


@settings(max_examples=30, deadline=None)
@given(videos, st.integers(0, 1000), st.sampled_from([0.02, 0.25, 0.5, 0.8, 1.0]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float) -> None:
    tokens = replace(tokens_at(grid, seed, channels=8), pooled=True)
    start, expected = 0, []
    for (n_frames, height, width), kept in zip(grid, tokens.pool_budget(keep)):
        cells = height * width
        x = tokens.hidden[start : start + n_frames * cells]
        quiet = sorted(range(8), key=lambda c: float(x[:, c].var(unbiased=False)))[:4]
        unit = torch.nn.functional.normalize(x[:, quiet], dim=-1)
        of_video, frames = near(unit), unit.split(cells)
        common = (of_video + torch.cat([near(frame) for frame in frames])).tolist()
        p = (-of_video.view(n_frames, cells).mean(1) / 0.01).softmax(0)
        share = (kept / len(x) * (1 + p - p.mean()) * cells).clamp(max=cells)
        end = [0, *share.cumsum(0).round().int().tolist()]
        chosen = []
        for f in range(n_frames):
            own = sorted(range(f * cells, (f + 1) * cells), key=lambda i: common[i])
            chosen += own[: max(1, end[f + 1] - end[f])]
        order = sorted(range(len(x)), key=lambda i: (i not in chosen, common[i]))
        expected += sorted(start + i for i in order[:kept])
        start += len(x)
    assert VidCom2().reduce(tokens, Site.entry(keep)).keep.tolist() == expected


def test_a_rare_frame_keeps_more() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = tokens_at([(4, 3, 4)], 0, channels=8)
    hidden = torch.ones(48, 8) + 0.1 * torch.randn(48, 8, generator=generator)
    hidden[24:36] += torch.randn(12, 8, generator=generator)
    reduction = VidCom2().reduce(replace(tokens, hidden=hidden, pooled=True), Site.entry(0.25))
    assert sum(reduction.counts) == 12
    assert max(reduction.counts) == reduction.counts[2] >= 5


def test_it_is_not_served() -> None:
    family: Any = foveate.list_families()["qwen2_5_vl"]
    host = Host("qwen2_5_vl", tiny.BLOCKS, tiny.LAYERS, False, frames=frozenset({"lm_entry"}))
    with pytest.raises(
        ConfigError, match="vidcom2 has one ranking for all images of a prompt or all frames of a video"
    ):
        make_plan(VidCom2(), host, family, tiny.config("qwen2_5_vl"))
