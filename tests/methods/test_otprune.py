"""OTPrune: each pick by the determinants themselves; options; serving."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import Host, OTPrune, Site
from foveate.errors import ConfigError
from foveate.serving.plan import make_plan


@settings(max_examples=12, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.05, 0.9), st.sampled_from([0.01, 1.0]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, gamma: float) -> None:
    grid = [(t, min(h, 3), min(w, 4)) for t, h, w in grid]
    tokens = tokens_at(grid, seed, channels=9)
    start, found = 0, OTPrune(gamma=gamma).reduce(tokens, Site.entry(keep)).keep.tolist()
    for n, kept in zip(tokens.counts, tokens.budget(keep)):
        x = tokens.hidden[start : start + n].double()
        x = x / x.norm(dim=0, keepdim=True)
        products = x @ x.T
        kernel = torch.eye(n).double() + gamma * products @ products
        chosen: list[int] = []
        while len(chosen) < kept:
            volume = {
                i: float(torch.logdet(kernel[[*chosen, i]][:, [*chosen, i]])) for i in range(n) if i not in chosen
            }
            chosen.append(max(volume, key=lambda i: round(volume[i], 6)))
        assert [i - start for i in found if start <= i < start + n] == sorted(chosen)
        start += n


def test_options_and_serving() -> None:
    with pytest.raises(ConfigError, match="gamma=0"):
        OTPrune(gamma=0.0)
    family: Any = foveate.list_families()["llava"]
    assert make_plan(OTPrune(), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava"))
