"""AnchorPrune: anchors and what is added to them by a plain loop; without words; options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import AnchorPrune, Signal, Site
from foveate.errors import ConfigError

PAID = Signal("received", at="tower")


def cosine(a: Any, b: Any) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


@settings(max_examples=20, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.1, 0.9), st.integers(0, 2), st.sampled_from([0.0, 0.5, 1.0]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, words: int, tau: float) -> None:
    grid = [(t, min(h, 4), min(w, 4)) for t, h, w in grid]
    tokens, generator = tokens_at(grid, seed, channels=4), torch.Generator().manual_seed(seed)
    n = 1 + max(tokens.spans.sample)
    place = torch.arange(n)[:, None] * (words + 1) + 1 + torch.arange(words)
    text, paid = torch.randn(n * (words + 1), 4, generator=generator), torch.rand(len(tokens), generator=generator)
    signals = {Signal("text"): text, "text_place": place, PAID: paid}
    site = Site.entry(keep, signals=("text", "text_place", PAID))
    method = AnchorPrune(tau=tau, patience=2)
    found, start = method.reduce(replace(tokens, signals=signals), site).keep.tolist(), 0
    for count, kept, sample in zip(tokens.counts, tokens.budget(keep), tokens.spans.sample):
        x, importance = tokens.hidden[start : start + count], paid[start : start + count]
        said = text[sample * (words + 1) + 1 :][:words]
        asked = [max((cosine(each, word) for word in said), default=float(p)) for each, p in zip(x, importance)]
        order = sorted(range(count), key=lambda i: -asked[i])
        sure = min(kept, max(1, int(kept * 10 / 64 + 0.5)))
        chosen, new = order[:sure], 0
        for i in order[sure : max(sure, kept // 2)]:
            if new == 2:
                break
            chosen.append(i)
            new += min(1 - cosine(x[i], x[j]) for j in order[:sure]) > tau
        while len(chosen) < kept:
            free = [i for i in range(count) if i not in chosen]
            away = {i: min(1.0, *(1 - cosine(x[i], x[j]) for j in chosen)) for i in free}
            chosen.append(max(free, key=lambda i: round(float(importance[i]) * away[i], 6)))
        if tokens.budget(keep) != tokens.counts:
            assert [i - start for i in found if start <= i < start + count] == sorted(chosen)
        start += count


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_tower_says_what_is_important(family: str) -> None:
    """At the entry it is what a site at the tower's output is told of the same block."""
    heard: dict[str, Any] = {}
    kind = "cls_row" if family == "llava" else "received"

    class Hear(AnchorPrune):
        def sites(self, host: Any) -> Any:
            return [Site.output(signals=(kind,)), Site.entry(signals=(Signal(kind, at="tower"),))]

        def reduce(self, tokens: Any, site: Site) -> Any:
            heard[site.at] = tokens.signal(site.asked[0])[tokens.index.argsort()]
            return tokens.keep_mask(torch.ones_like(tokens.index, dtype=torch.bool))

    model, image = tiny.model(family), "image" if family == "llava" else (8, 8)
    with torch.no_grad(), foveate.compress(model, Hear()):
        model(**tiny.inputs(family, [[3, image, 5]]))
    torch.testing.assert_close(heard["lm_entry"], heard["tower_output"])


def test_options() -> None:
    with pytest.raises(ConfigError, match="patience=0"):
        AnchorPrune(patience=0)
    with pytest.raises(foveate.FoveateError, match="cut into tiles"):
        foveate.compress(tiny.model("llava_next"), AnchorPrune())
