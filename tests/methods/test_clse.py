"""CLSE: what has changed of the details, by sums from the definition of the Fourier transform; cuts; golden values; options."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import pytest
import tiny
import torch
from by_loops import best, kept
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

from foveate import CLSE, Host, Signal, Site
from foveate.errors import ConfigError
from foveate.ops.spectrum import detail

BEFORE = Signal("hidden", 0)


def details(x: Any, index: list[int], shape: tuple[int, int], cutoff: float) -> list[float]:
    """The mean magnitude of each token over channels without low frequencies; 0 where the image has lost tokens."""
    height, width = shape
    if len(index) != height * width:
        return [0.0] * len(index)
    at = {i: x[j].tolist() for j, i in enumerate(index)}
    bell, total = cutoff * min(height // 2, width // 2), dict.fromkeys(index, 0.0)
    for channel in range(x.shape[1]):
        passed = {}
        for v in range(height):
            for u in range(width):
                far = min(v, height - v) ** 2 + min(u, width - u) ** 2
                gain = 1 - (math.exp(-far / (2 * bell**2)) if bell else float(far == 0))
                passed[v, u] = gain * sum(
                    at[i][channel] * cmath.exp(-2j * math.pi * (v * (i // width) / height + u * (i % width) / width))
                    for i in index
                )
        for i in index:
            high = sum(
                c * cmath.exp(2j * math.pi * (v * (i // width) / height + u * (i % width) / width))
                for (v, u), c in passed.items()
            )
            total[i] += abs(high) / (height * width) / x.shape[1]
    return [total[i] for i in index]


def evolution(before: list[float], now: list[float], temperature: float) -> list[float]:
    change = [min(1.0, abs(b - a) / (mean(before) + a + 1e-6)) for a, b in zip(before, now)]
    deviation = (stdev(change) if len(change) > 1 else 0.0) + 1e-6
    return [1 / (1 + math.exp(min(700, -(c - mean(change)) / deviation / temperature))) for c in change]


@settings(max_examples=15, deadline=None)
@given(grids, st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.4]), st.booleans())
def test_evolution_by_loops(grid: Any, seed: int, cutoff: float, whole: bool) -> None:
    grid = [(t, min(h, 4), min(w, 5)) for t, h, w in grid]
    tokens, method = tokens_at(grid, seed, channels=2), CLSE(cutoff=cutoff, temperature=0.5)
    tokens = replace(tokens, hidden=tokens.hidden.double())
    if not whole and len(tokens) > 1:  # the first token of all is gone
        tokens = tokens.select(torch.arange(1, len(tokens)), (tokens.counts[0] - 1, *tokens.counts[1:]))
    before = tokens.hidden + torch.randn(tokens.hidden.shape, generator=torch.Generator().manual_seed(seed)).double()
    found, start = method.evolution(replace(tokens, signals={BEFORE: before})), 0
    for n, shape in zip(tokens.counts, tokens.spans.shape):
        index, at = tokens.index[start : start + n].tolist(), slice(start, start + n)
        first, now = (details(x[at], index, shape, cutoff) for x in (before, tokens.hidden))
        torch.testing.assert_close(detail(before[at], tokens.index[at], (n,), (shape,), cutoff).tolist(), first)
        expected = evolution(first, now, 0.5) if n else []
        torch.testing.assert_close(found[at].tolist(), expected, rtol=1e-4, atol=1e-4)
        start += n


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_it_is_the_loop_of_its_paper(family: str) -> None:
    """Of what a stock model computes: both at the first cut, attention alone at the second one."""
    batch = tiny.inputs(family, [[4, "image", 6]])
    images = tiny.visual_mask(family, batch)[0].nonzero().flatten().tolist()
    with torch.no_grad():
        stock = tiny.model(family, "eager")(**batch, output_attentions=True, output_hidden_states=True)
    shape = (6, 6) if len(images) == 36 else next((h, len(images) // h) for h in (4, 3, 2, 1) if len(images) % h == 0)
    first, now = (
        details(stock.hidden_states[layer][0, images], list(range(len(images))), shape, 0.1) for layer in (0, 1)
    )
    paid = stock.attentions[0][0].mean(0)[-1, images].tolist()
    scores = [a * e for a, e in zip(paid, evolution(first, now, 0.1))]
    left = best(scores, int(0.5 * len(images) + 0.5))
    assert kept(tiny.model(family), batch, CLSE(layers=(1,), ratios=(0.5,))) == [tuple(sorted(left))]


def test_cuts_are_those_of_the_authors_code() -> None:
    host = Host("llava", 23, 32, True)
    sites = CLSE().sites(host)
    assert [site.layer for site in sites] == [1, 11, 21]
    assert [[str(signal) for signal in site.asked] for site in sites] == [
        ["last_row", "hidden of layer 0"],
        ["last_row"],
        ["last_row"],
    ]
    tokens, counts = tokens_at([(1, 24, 24)], 0), []
    for site in sites:
        counts += tokens.budget(site)
        tokens = tokens.select(torch.arange(counts[-1]), (counts[-1],))
    assert counts == [330, 210, 62]


def test_golden_values() -> None:
    """Without the mean, three of four tokens are 1 and then 2, and the other one 3 and then 2, which is less of a change."""
    tokens = tokens_at([(1, 2, 2)], 0)
    tokens = tokens.select(tokens.index.argsort(), tokens.counts)
    before, now = torch.tensor([[0.0], [0.0], [0.0], [4.0]]), torch.tensor([[0.0], [0.0], [4.0], [4.0]])
    seen = replace(tokens, hidden=now, signals={BEFORE: before, "last_row": torch.ones(4, 2)})
    golden = [0.6225, 0.6225, 0.6225, 0.1824]
    torch.testing.assert_close(CLSE(temperature=1.0).evolution(seen).tolist(), golden, rtol=0, atol=1e-4)
    assert CLSE().reduce(seen, Site.decoder(1, 0.75)).keep.tolist() == [0, 1, 2]


def test_an_image_of_one_token() -> None:
    tokens = replace(tokens_at([(1, 1, 1)], 0), signals={BEFORE: torch.ones(1, 6), "last_row": torch.ones(1, 2)})
    assert CLSE().evolution(tokens).tolist() == [0.5]
    for keep in (0.0, 0.1, 1.0):
        assert CLSE().reduce(tokens, Site.decoder(1, keep)).counts == (int(keep > 0),)


def test_options() -> None:
    for options in (dict(cutoff=1.5), dict(temperature=0.0), dict(temperature=-1.0)):
        with pytest.raises(ConfigError, match=next(iter(options))):
            CLSE(**options)  # type: ignore[arg-type]
