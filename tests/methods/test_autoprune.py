"""AutoPrune: information, curves and what stays by plain loops; the budget is met whatever the prompt; options."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from by_loops import best
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import tokens_at

import foveate
from foveate import AutoPrune, Host, Signal
from foveate.errors import ConfigError

images = st.lists(st.tuples(st.just(1), st.integers(1, 4), st.integers(2, 4)), min_size=1, max_size=3)
HEADS = Signal("text_rows", heads=True)


def curve(layer: int, k: float) -> float:
    return 0.75 / (1 + math.exp(k * (layer - 1 - 14.9 - k)))


@settings(max_examples=20, deadline=None)
@given(images, st.integers(0, 1000), st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([0.0, 0.2, 3.0]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, gamma: float) -> None:
    host, generator = Host("llava", 23, 32, True), torch.Generator().manual_seed(seed)
    tokens = replace(tokens_at(grid, seed), pooled=True)
    method: Any = AutoPrune(keep=keep, gamma=gamma).resolve(host)
    rows = torch.rand(len(tokens), 2, 3, generator=generator)
    rows = rows / rows.sum(0)
    place = torch.arange(3 * len(grid)).view(-1, 3)
    sites = method.sites(host)
    state: dict[str, Any] = {}
    seen = replace(tokens, state=state, signals={"text_rows": rows.mean(1), HEADS: rows, "text_place": place})
    found, start = method.reduce(seen, sites[0]).keep.tolist(), 0
    held = [b - a for a, b in zip([s.layer for s in sites], [*(s.layer for s in sites[1:]), 32])]
    for image, n in enumerate(tokens.counts):
        paid = rows[start : start + n] / 3
        bits = 0.0
        for head in paid.unbind(1):
            for v in range(n):
                for r in range(3):
                    ratio = float(head[v, r]) / (float(head[v].sum()) / 3 + 1e-6)
                    bits += float(head[v, r]) * math.log2(max(ratio, 1e-6))
        k = max(0.4 - gamma * bits, 0.0)
        shares = [min(1.0, left[image] / n) for left in state["left"]]
        mean = (sites[0].layer + sum(share * each for share, each in zip(shares, held))) / 32
        if min(left[image] for left in state["left"]) > 1:  # one stays in any case
            assert mean == pytest.approx(keep, abs=0.6 / n)
        inside = [(s, curve(site.layer, k)) for s, site in zip(shares, sites) if s * n > 2 and s < 1]
        for (a, c), (b, d) in zip(inside, inside[1:]):  # all shares are the curve times one factor
            assert abs(a * n - b * n * c / d) <= 1 + 2 * c / d
        score = rows[start : start + n].mean((1, 2)).tolist()
        assert [i - start for i in found if start <= i < start + n] == sorted(best(score, state["left"][0][image]))
        start += n


def test_layers_hold_as_much_as_was_said() -> None:
    model = tiny.model("qwen2_5_vl")
    for gamma in (0.0, 50.0):
        with torch.no_grad(), foveate.compress(model, AutoPrune(keep=0.5, gamma=gamma)) as handle:
            model(**tiny.inputs("qwen2_5_vl", [[3, (8, 8), 5, (4, 8), 6]]))
            report = handle.report()
        assert report.shares["tokens"] == pytest.approx(0.5, abs=2 / report.visual_tokens)


def test_options() -> None:
    for options in (dict(gamma=-1.0), dict(steepness=2e3), dict(depth=0)):
        with pytest.raises(ConfigError, match="autoprune: "):
            AutoPrune(**options)  # type: ignore[arg-type]
    assert AutoPrune().mean(Host("llava", 23, 32, True)) == pytest.approx(1 / 3)
