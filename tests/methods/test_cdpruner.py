"""CDPruner: relevance and the greedy determinant by plain loops, no question, more picks than directions; serving."""

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
from foveate import CDPruner, Host, Signal, Site, Tokens
from foveate.errors import FoveateError
from foveate.serving.plan import make_plan


def asked(tokens: Tokens, seed: int, words: int) -> Tokens:
    """The same tokens, with some words behind each image and one before it."""
    n = 1 + max(tokens.spans.sample)
    text = torch.randn(n * (words + 1), 9, generator=torch.Generator().manual_seed(seed))
    place = torch.arange(n)[:, None] * (words + 1) + 1 + torch.arange(words)
    return replace(tokens, signals={Signal("text"): text, "text_place": place})


@settings(max_examples=12, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.01, 0.3), st.integers(0, 4))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, words: int) -> None:
    """The determinants are computed anew for each pick."""
    grid = [(t, min(h, 3), min(w, 4)) for t, h, w in grid]
    tokens = asked(tokens_at(grid, seed, channels=9), seed, words)
    text, start, expected = tokens.text, 0, []
    for n, kept, sample in zip(tokens.counts, tokens.budget(keep), tokens.spans.sample):
        own = text[sample * (words + 1) + 1 :][:words]
        x = torch.nn.functional.normalize(tokens.hidden[start : start + n].double(), dim=-1)
        alike = (
            torch.tensor([[float(torch.cosine_similarity(a.float(), b, dim=0)) for b in own] for a in x])
            .mean(-1)
            .double()
        )
        size = float(alike.max() - alike.min()) if words else 0.0
        relevant = (alike - alike.min()) / size + 1e-6 if size > 1e-6 else torch.ones(n).double()
        kernel = relevant[:, None] * (x @ x.T) * relevant
        chosen: list[int] = []
        for _ in range(kept):
            sets = {i: [*chosen, i] for i in range(n) if i not in chosen}
            chosen.append(max(sets, key=lambda i: float(f"{float(torch.linalg.det(kernel[sets[i]][:, sets[i]])):.6e}")))
        expected += sorted(start + i for i in chosen)
        start += n
    assert CDPruner().reduce(tokens, Site.entry(keep)).keep.tolist() == expected


def test_golden_values() -> None:
    """Of two twins the question wants one, then what is unlike it, though that is not what was asked for."""
    tokens = tokens_at([(1, 1, 3)], 0)
    tokens = tokens.select(tokens.index.argsort(), tokens.counts)
    hidden = torch.tensor([[1.0, 0, 0.2], [1.0, 0, 0.1], [0, 1.0, 0]])
    signals = {Signal("text"): torch.tensor([[1.0, 0, 0]]), "text_place": torch.tensor([[0]])}
    seen = replace(tokens, hidden=hidden, signals=signals)
    assert CDPruner().reduce(seen, Site.entry(1 / 3)).keep.tolist() == [1]
    assert CDPruner().relevance(seen)[[1, 2]].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


def test_it_is_not_served() -> None:
    family: Any = foveate.list_families()["llava"]
    with pytest.raises(FoveateError, match="cdpruner wants the text at lm_entry"):
        make_plan(CDPruner(), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava"))
