"""IVC-Prune: its choice by plain loops, golden values, and which layer it chooses before where some carry a state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from by_loops import best
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

from foveate import Host, IVCPrune, Signal, Site, Tokens
from foveate.errors import ConfigError
from foveate.schedule import survivors

WORDS, ANGLES = Signal("values", of="text"), Signal("rope", of="text")


def asked(tokens: Tokens, seed: int, words: int) -> Tokens:
    """The same tokens, with some words behind each image, one before it, and angles."""
    generator = torch.Generator().manual_seed(seed)
    n, samples = len(tokens), 1 + max(tokens.spans.sample)
    place = torch.arange(samples)[:, None] * (words + 1) + 1 + torch.arange(words)
    said, turned = torch.randn(samples * (words + 1), 2, 3, generator=generator), torch.rand(n, 4, generator=generator)
    from_start = torch.rand(samples * (words + 1), 4, generator=generator)
    signals = {"values": torch.randn(n, 2, 3, generator=generator), "rope": tables(6 * turned + from_start[0])}
    of_text = {WORDS: said, ANGLES: tables(from_start), "text_place": place}
    return replace(tokens, signals={**signals, **of_text}, text_counts=(words + 1,) * samples, state={})


def tables(angles: Any) -> Any:
    """Cosines and sines."""
    return torch.stack([angles.cos(), angles.sin()], 1)


def looks(query: Any, values: Any) -> Any:
    """How much one value looks at others: the softmax over these, mean over heads."""
    return torch.stack([torch.softmax(values[:, h] @ query[h] / 3**0.5, 0) for h in range(2)]).mean(0)


@settings(max_examples=30, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.02, 1.0), st.integers(0, 3))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, words: int) -> None:
    tokens = asked(tokens_at(grid, seed), seed, words)
    site, start, expected = Site.decoder(3, keep), 0, []
    for n, kept, sample in zip(tokens.counts, tokens.budget(site), tokens.spans.sample):
        own = slice(start, start + n)
        values, said = tokens.values[own], tokens.signal(WORDS)[sample * (words + 1) + 1 :][:words]
        score = sum((looks(word, values) for word in said), start=torch.zeros(n))
        seeds = best(score.tolist(), survivors(n, 0.01))
        score = score + sum(looks(values[seed_], values) for seed_ in seeds)
        zero = torch.atan2(*tokens.signal(ANGLES)[sample * (words + 1)].flip(0))
        angles = torch.atan2(tokens.rope[own, 1], tokens.rope[own, 0]) - zero
        means = angles.cos().mean(-1), angles.sin().mean(-1)
        marks = [best(mean.tolist(), survivors(kept, 0.2, least=0)) for mean in means]
        level = [10.0 * (i in marks[0] or i in marks[1]) + 5 * (i in seeds) + float(score[i]) / 10 for i in range(n)]
        expected += sorted(start + i for i in best(level, kept))
        start += n
    assert IVCPrune().reduce(tokens, site).keep.tolist() == expected


def test_golden_values() -> None:
    """Of ten tokens in a row: the second looks like the only word, the third like the second, and two are landmarks."""
    tokens = tokens_at([(1, 1, 10)], 0)
    tokens = replace(tokens.select(tokens.index.argsort(), tokens.counts), state={})
    values = torch.zeros(10, 1, 2)
    values[1], values[2] = torch.tensor([[4.0, 2.0]]), torch.tensor([[0.0, 8.0]])
    rope = torch.zeros(10, 2, 2).index_fill_(0, torch.tensor([7]), 0.5)
    rope[9, 1] = 1.0
    said = {WORDS: torch.tensor([[[3.0, 0.0]]]), ANGLES: torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])}
    signals = {"values": values, "rope": rope, **said, "text_place": torch.tensor([[0]])}
    seen = replace(tokens, signals=signals, text_counts=(1,))
    assert IVCPrune().reduce(seen, Site.decoder(1, 0.4)).keep.tolist() == [1, 2, 7, 9]
    assert IVCPrune(coordinates=0.0).reduce(seen, Site.decoder(1, 0.2)).keep.tolist() == [1, 2]


def test_a_seed_stays_though_it_looks_elsewhere() -> None:
    """Of ten tokens the second is closest to the word, and looks at the third, whose value is larger."""
    tokens = tokens_at([(1, 1, 10)], 0)
    tokens = replace(tokens.select(tokens.index.argsort(), tokens.counts), state={})
    values = torch.zeros(10, 1, 2)
    values[1], values[2] = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.9, 20.0]])
    tables_of = {"rope": torch.zeros(10, 2, 2), ANGLES: torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])}
    signals = {"values": values, WORDS: torch.tensor([[[3.0, 0.0]]]), "text_place": torch.tensor([[0]]), **tables_of}
    seen = replace(tokens, signals=signals, text_counts=(1,))
    for keep, left in ((0.1, [1]), (0.2, [1, 2])):
        assert IVCPrune(coordinates=0.0).reduce(seen, Site.decoder(1, keep)).keep.tolist() == left


def test_it_chooses_behind_a_layer_that_has_a_cache() -> None:
    """In a model three quarters of whose layers carry a state, too; its caches are those before."""
    host = Host("qwen3_5", 4, 28, False, fixed_caches=tuple(i for i in range(28) if i % 4 != 3))
    first, *caches = IVCPrune().sites(host)
    assert (first.layer, [site.layer for site in caches]) == (16, [3, 7, 11, 15])
    assert IVCPrune().sites(Host("llava", 4, 28, True))[0].layer == 16
    with pytest.raises(ConfigError, match="coordinates"):
        IVCPrune(coordinates=1.5)
