"""DART: pivots and what resembles them least by a plain loop; a question that has too few words; serving."""

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
from foveate import DART, Host, Signal, Site
from foveate.errors import ConfigError, FoveateError
from foveate.methods import dart
from foveate.serving.plan import make_plan


@settings(max_examples=30, deadline=None)
@given(
    grids,
    st.integers(0, 1000),
    st.sampled_from([0.02, 0.2, 0.5, 0.9, 1.0]),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 6),
)
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, pivots: int, words: int) -> None:
    """All images are of samples with as many words after them, each with one more before."""
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    samples = 1 + max(tokens.spans.sample)
    text = torch.randn(samples, words + 1, 6, generator=generator)
    word_keys = torch.randn(samples, words + 1, 2, 3, generator=generator)
    place = torch.arange(samples)[:, None] * (words + 1) + 1 + torch.arange(words)
    signals = {"keys": tokens.keys, Signal("keys", of="text"): word_keys.flatten(0, 1), "text_place": place}
    seen = replace(tokens, signals=signals | {Signal("text"): text.flatten(0, 1)})
    start, expected = 0, []
    for n, kept, sample in zip(tokens.counts, tokens.budget(keep), tokens.spans.sample):
        members = list(range(start, start + n))
        first = sorted(members, key=lambda i: -float(tokens.keys[i].norm()))
        asks = sorted(range(1, words + 1), key=lambda j: -float(word_keys[sample, j].norm()))[:pivots]
        chosen = first[: min(pivots, kept)]
        again = [tokens.hidden[first[i % n]] for i in range(pivots)]
        turns = again + [text[sample, j] for j in asks] + again[len(asks) :]
        left = kept - len(chosen)
        for i, pivot in enumerate(turns):
            quota = int(left * (i + 1) / len(turns) + 0.5) - int(left * i / len(turns) + 0.5)
            others = [j for j in members if j not in chosen]
            alike = {j: float(torch.cosine_similarity(tokens.hidden[j], pivot, dim=0)) for j in others}
            chosen += sorted(others, key=lambda j: alike[j])[:quota]
        expected += sorted(chosen)
        start += n
    assert DART(pivots=pivots).reduce(seen, Site.decoder(2, keep)).keep.tolist() == expected


def test_the_pivots_do_not_depend_on_padding() -> None:
    """Rotary embeddings turn keys by their position, which keeps their norm."""
    keys = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    angle = torch.arange(5.0)[:, None, None] * torch.tensor([1.0, 0.1])
    turned = (
        keys[..., :2] * angle.cos() - keys[..., 2:] * angle.sin(),
        keys[..., 2:] * angle.cos() + keys[..., :2] * angle.sin(),
    )
    torch.testing.assert_close(dart._size(torch.cat(turned, -1)), dart._size(keys))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="pivots=0: give at least 1"):
        DART(pivots=0)
    family: Any = foveate.list_families()["llava"]
    with pytest.raises(
        FoveateError, match="dart wants the text at decoder 2, but a prompt may come in pieces, an image before its"
    ):
        make_plan(DART(), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava"))
