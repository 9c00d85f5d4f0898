"""MMTok: coverage by plain loops, whatever is held at once; golden values; where it is refused."""

from __future__ import annotations

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
from foveate import Host, MMTok, Signal, Site, Tokens
from foveate.errors import ConfigError, FoveateError
from foveate.ops.cover import covering
from foveate.serving.plan import make_plan


def asked(tokens: Tokens, seed: int, words: int) -> Tokens:
    """The same tokens, with some words behind each image and one before it."""
    n, generator = 1 + max(tokens.spans.sample), torch.Generator().manual_seed(seed)
    place = torch.arange(n)[:, None] * (words + 1) + 1 + torch.arange(words)
    text = torch.randn(n * (words + 1), tokens.hidden.shape[1], generator=generator)
    return replace(tokens, signals={Signal("text"): text, "text_place": place})


def by_loops(x: Any, words: Any, kept: int, alpha: float) -> list[int]:
    """The set whose coverage, added up anew for each candidate, is largest at each step."""
    rows = [(word, 0.02, 1 / len(words)) for word in words] + [(each, 0.2, alpha / len(x)) for each in x]
    covers = [weight * torch.softmax(x @ row / sharp, 0) for row, sharp, weight in rows]
    chosen: list[int] = []
    for _ in range(kept):
        free = [i for i in range(len(x)) if i not in chosen]
        total = {i: sum(float(each[[*chosen, i]].max()) for each in covers) for i in free}
        chosen.append(max(free, key=lambda i: round(total[i], 5)))
    return chosen


@settings(max_examples=15, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.05, 0.5), st.integers(0, 3), st.sampled_from([0.0, 0.5, 2.0]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, words: int, alpha: float) -> None:
    grid = [(t, min(h, 3), min(w, 4)) for t, h, w in grid]
    tokens = asked(tokens_at(grid, seed, channels=9), seed, words)
    alpha = alpha if words else 0.5  # or nothing covers
    start, found = 0, MMTok(alpha=alpha).reduce(tokens, Site.entry(keep)).keep.tolist()
    for n, kept, sample in zip(tokens.counts, tokens.budget(keep), tokens.spans.sample):
        x = normalize(tokens.hidden[start : start + n].double(), dim=-1)
        said = normalize(tokens.text[sample * (words + 1) + 1 :][:words].double(), dim=-1)
        expected = sorted(start + i for i in by_loops(x, said, kept, alpha))
        assert [i for i in found if start <= i < start + n] == expected
        start += n
    words_of = tokens.text, tokens.text_place[torch.tensor(tokens.spans.sample)]
    options: Any = dict(sharp=(0.02, 0.2), weight=alpha)
    again = covering(tokens.hidden, tokens.counts, tokens.budget(keep), *words_of, **options, cells=1)
    assert again.tolist() == found


def test_golden_values() -> None:
    """What is asked for is first, then what stands for most others, and then what nothing stands for."""
    tokens = tokens_at([(1, 1, 5)], 0)
    tokens = tokens.select(tokens.index.argsort(), tokens.counts)
    hidden = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0.9, 0.1], [0, 0.9, -0.1], [-1.0, 0, 0]])
    signals = {Signal("text"): torch.tensor([[2.0, 0, 0]]), "text_place": torch.tensor([[0]])}
    seen = replace(tokens, hidden=hidden, signals=signals)
    assert MMTok().reduce(seen, Site.entry(0.2)).keep.tolist() == [0]
    assert MMTok().reduce(seen, Site.entry(0.4)).keep.tolist() == [0, 1]
    assert MMTok().reduce(seen, Site.entry(0.6)).keep.tolist() == [0, 1, 4]


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="give the weight"):
        MMTok(alpha=-1.0)
    family: Any = foveate.list_families()["llava"]
    with pytest.raises(FoveateError, match="mmtok wants the text at lm_entry"):
        make_plan(MMTok(), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava"))
