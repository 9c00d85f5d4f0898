"""EADP: what is asked for, its smoothing and what stays by plain loops; golden values; without words; what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at
from torch.nn.functional import normalize

import foveate
from foveate import EADP, Host, Signal, Site, Tokens
from foveate.errors import ConfigError, FoveateError
from foveate.ops.grid import smoothed
from foveate.serving.plan import make_plan


def asked(tokens: Tokens, seed: int, words: int) -> Tokens:
    """The same tokens, with some words behind each image and one before it."""
    n, generator = 1 + max(tokens.spans.sample), torch.Generator().manual_seed(seed)
    place = torch.arange(n)[:, None] * (words + 1) + 1 + torch.arange(words)
    text = torch.randn(n * (words + 1), tokens.hidden.shape[1], generator=generator)
    return replace(tokens, signals={Signal("text"): text, "text_place": place})


def blurred(values: dict[tuple[int, int], float], height: int, width: int) -> dict[tuple[int, int], float]:
    """Gaussian means over 3x3 cells, mirrored at the border."""
    out = {}
    for y, x in values:
        total = mass = 0.0
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                row, column = (
                    min(abs(at), most - 1, max(0, 2 * most - 2 - at))
                    for at, most in ((y + down, height), (x + right, width))
                )
                if (row, column) in values:
                    weight = math.exp(-(down**2 + right**2) / 2)
                    total, mass = total + weight * values[row, column], mass + weight
        out[y, x] = total / mass
    return out


def relevance(method: EADP, x: Any, words: Any, index: list[int], shape: tuple[int, int]) -> list[float]:
    """How much each token of an image weighs."""
    alike = [0.0] * len(x)
    if len(words):
        mean, image, said = normalize(words.mean(0), dim=-1), normalize(x, dim=-1), normalize(words, dim=-1)
        entropy = []
        for word in said:
            looks = torch.softmax(-100 * (image @ word), 0)
            entropy.append(-sum(float(p) * math.log(float(p) + 1e-12) for p in looks))
        few = sorted(range(len(words)), key=lambda j: entropy[j])[: max(1, int(method.few * len(words)))]
        least = min(entropy[j] for j in few)
        weight = [math.exp(-(entropy[j] - least) / 0.010001) for j in few]
        for i, each in enumerate(image):
            local = sum(w * float(each @ said[j]) for w, j in zip(weight, few)) / sum(weight)
            alike[i] = method.alpha * float(each @ mean) + (1 - method.alpha) * local
    lowest, most = min(alike), max(alike)
    scaled = {(i // shape[1], i % shape[1]): (most - a + 1e-6) / (most - lowest + 1e-6) for i, a in zip(index, alike)}
    smooth = blurred(scaled, *shape)
    return [smooth[i // shape[1], i % shape[1]] ** method.beta for i in index]


def picked(x: Any, weight: list[float], k: int) -> list[int]:
    cosine = ((1 + normalize(x, dim=-1) @ normalize(x, dim=-1).T) / 2).tolist()
    chosen: list[int] = []
    while len(chosen) < k:
        free = [j for j in range(len(x)) if j not in chosen]
        total = {j: sum(w * max(cosine[i][c] for c in [*chosen, j]) for i, w in enumerate(weight)) for j in free}
        chosen.append(max(free, key=lambda j: round(total[j] / sum(weight), 6)))
    return sorted(chosen)


@settings(max_examples=15, deadline=None)
@given(
    grids,
    st.integers(0, 1000),
    st.floats(0.05, 0.6),
    st.integers(0, 7),
    st.sampled_from([EADP(), EADP(alpha=0.0, few=1.0), EADP(alpha=1.0, beta=2.0)]),
)
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, words: int, method: EADP) -> None:
    grid = [(t, min(h, 3), min(w, 4)) for t, h, w in grid]
    tokens = asked(tokens_at(grid, seed, channels=9), seed, words)
    weighs, found = method.relevance(tokens), method.reduce(tokens, Site.entry(keep)).keep.tolist()
    start = 0
    for n, kept, sample, shape in zip(tokens.counts, tokens.budget(keep), tokens.spans.sample, tokens.spans.shape):
        x, said = tokens.hidden[start : start + n].double(), tokens.text[sample * (words + 1) + 1 :][:words].double()
        expected = relevance(method, x, said, tokens.index[start : start + n].tolist(), shape)
        torch.testing.assert_close(weighs[start : start + n].tolist(), expected, rtol=1e-3, atol=1e-4)
        assert [i - start for i in found if start <= i < start + n] == picked(x, expected, kept)
        start += n


@settings(max_examples=20, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.3, 1.0))
def test_smoothing_by_loops(grid: Any, seed: int, share: float) -> None:
    """Also where tokens are missing, and of a constant."""
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    keep = (
        (torch.rand(len(tokens), generator=generator) < share)
        .index_fill(0, torch.tensor([0]), True)
        .nonzero()
        .flatten()
    )
    counts = torch.bincount(tokens.segment[keep], minlength=len(tokens.counts)).tolist()
    some, values = tokens.select(keep, tuple(counts)), torch.rand(len(keep), generator=generator)
    shapes, start, expected = tokens.spans.shape, 0, []
    for n, (height, width) in zip(counts, shapes):
        places = [(i // width, i % width) for i in some.index[start : start + n].tolist()]
        smooth = blurred(dict(zip(places, values[start : start + n].tolist())), height, width)
        expected += [smooth[place] for place in places]
        start += n
    torch.testing.assert_close(smoothed(values, some.index, counts, shapes).tolist(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(smoothed(torch.ones(len(keep)), some.index, counts, shapes), torch.ones(len(keep)))


def test_golden_values() -> None:
    """A row of five, whose word looks like the first one: its neighbours weigh less, too; and all of them without a word."""
    tokens = tokens_at([(1, 1, 5)], 0)
    tokens = tokens.select(tokens.index.argsort(), tokens.counts)
    hidden = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 1.0, 0], [0, 0.8, 0.6], [0, 0, 1.0]])
    signals = {Signal("text"): torch.tensor([[2.0, 0, 0]]), "text_place": torch.tensor([[0]])}
    seen = replace(tokens, hidden=hidden, signals=signals)
    golden = torch.tensor([0.1096, 0.3644, 0.7807, 1.0, 1.0])
    torch.testing.assert_close(EADP().relevance(seen), golden, rtol=0, atol=1e-4)
    assert EADP().reduce(seen, Site.entry(0.2)).keep.tolist() == [3]
    assert EADP().reduce(seen, Site.entry(0.4)).keep.tolist() == [3, 4]
    assert EADP().reduce(seen, Site.entry(0.6)).keep.tolist() == [1, 3, 4]
    silent = replace(
        seen, signals={Signal("text"): torch.zeros(0, 3), "text_place": torch.zeros(1, 0, dtype=torch.long)}
    )
    assert EADP().relevance(silent).tolist() == [1.0] * 5


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_an_image_of_one_token(keep: float) -> None:
    tokens = asked(tokens_at([(1, 1, 1), (1, 1, 2)], 3), 3, 2)
    assert EADP().reduce(tokens, Site.entry(keep)).counts == (int(keep), 2 * int(keep))


def test_what_it_refuses() -> None:
    for options in (dict(alpha=1.5), dict(few=-0.1), dict(beta=-1.0)):
        with pytest.raises(ConfigError, match=next(iter(options))):
            EADP(**options)
    family: Any = foveate.list_families()["llava"]
    with pytest.raises(FoveateError, match="eadp wants the text at lm_entry"):
        make_plan(EADP(), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava"))
