"""SparseVLM+, by a plain loop over what a stock model computes; heads and distances; its cuts; what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from by_loops import best, kept
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import Host, Signal, Site, SparseVLMPlus
from foveate.errors import ConfigError, UnsupportedSiteError

HEADS, TURNS = Signal("text_rows", heads=True), Signal("rope", of="text")
IMAGE, WORDS = Signal("hidden", 0), Signal("hidden", 0, of="text")


def scores(embedded: Any, words: Any, paid: Any, turned: Any, turns: Any, heads: float) -> list[float]:
    """Of the tokens ``(n, C)`` of a sample: what ``paid (n, H, R)`` of its words makes, whose tables are ``(2, d)`` each."""
    about = torch.stack([torch.softmax(words @ each, 0) for each in embedded]).mean(0).tolist()
    raters = [j for j, a in enumerate(about) if a >= sum(about) / len(about) - 1e-7]
    near = [[max(0.01, float((t * w).sum()) / t.shape[1]) for w in turns] for t in turned]
    each = [
        [sum(float(row[h, j]) / near[i][j] for j in raters) for h in range(row.shape[0])] for i, row in enumerate(paid)
    ]
    total = [sum(token[h] for token in each) for h in range(paid.shape[1])]
    chosen = best(total, max(1, int(heads * len(total))))
    return [sum(token[h] for h in chosen) for token in each]


@settings(max_examples=20, deadline=None)
@given(grids, st.integers(0, 1000), st.integers(1, 4), st.sampled_from([0.1, 14 / 32, 1.0]))
def test_scores_by_loops(grid: Any, seed: int, words: int, heads: float) -> None:
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    n = 1 + max(tokens.spans.sample)
    place = torch.arange(n)[:, None] * words + torch.arange(words)
    text = torch.randn(n * words, 6, generator=generator)
    angles, of_words = (torch.rand(k, 4, generator=generator) * 6 for k in (len(tokens), n * words))
    tables, turns = (torch.stack([a.cos(), a.sin()], 1) for a in (angles, of_words))
    paid = torch.rand(len(tokens), 3, words, generator=generator)
    signals = {HEADS: paid, "text_place": place, IMAGE: tokens.hidden, WORDS: text, "rope": tables, TURNS: turns}
    found = SparseVLMPlus(heads=heads).score(replace(tokens, signals=signals), Site.decoder(3, 0.5))
    for sample in range(n):
        own, said = (tokens.sample == sample).nonzero().flatten(), place[sample]
        expected = scores(tokens.hidden[own], text[said], paid[own], tables[own], turns[said], heads)
        torch.testing.assert_close(found[own].tolist(), expected, rtol=1e-4, atol=1e-4)


def test_it_is_the_loop_of_its_code() -> None:
    """Of what a stock model computes, whose rotary tables are made from the positions."""
    model, layer = tiny.model("llava", "eager"), 2
    batch = tiny.inputs("llava", [[4, "image", 6]])
    images = tiny.visual_mask("llava", batch)[0].nonzero().flatten().tolist()
    words = list(range(images[-1] + 1, batch["input_ids"].shape[1]))
    with torch.no_grad():
        stock = model(**batch, output_attentions=True, output_hidden_states=True)
        cos, sin = model.model.language_model.rotary_emb(
            stock.hidden_states[0], torch.arange(batch["input_ids"].shape[1])[None]
        )
    tables, x = torch.stack([cos[0], sin[0]], 1), stock.hidden_states[0][0]
    paid = stock.attentions[layer - 1][0][:, words][:, :, images].permute(2, 0, 1)
    expected = scores(x[images], x[words], paid, tables[images], tables[words], 0.5)
    left = tuple(sorted(best(expected, int(0.4 * len(images) + 0.5))))
    method = SparseVLMPlus(layers=(layer,), ratios=(0.4,), heads=0.5)
    assert kept(tiny.model("llava"), batch, method) == [left]


def test_cuts_are_those_of_the_authors_code() -> None:
    """Of 576 tokens 300, 200 and 118 are left after layers 2, 6 and 15."""
    sites = SparseVLMPlus().sites(Host("llava", 23, 32, True))
    assert [site.layer for site in sites] == [3, 7, 16]
    tokens, counts = tokens_at([(1, 24, 24)], 0), []
    for site in sites:
        counts += tokens.budget(site)
        tokens = tokens.select(torch.arange(counts[-1]), (counts[-1],))
    assert counts == [300, 200, 118]


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="is not a share of the heads"):
        SparseVLMPlus(heads=1.5)
    with pytest.raises(UnsupportedSiteError, match='with positions="renumber" they are known only once'):
        foveate.compress(tiny.model("llava"), SparseVLMPlus(positions="renumber"))
