"""OTT-Vid: what represents a frame, what is carried over and merged, by plain loops; shares of a budget; options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import tokens_at

from foveate import OTTVid, Site
from foveate.errors import ConfigError
from foveate.ops import cover, transport

videos = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 3)), min_size=1, max_size=2)


def picked(x: Any, weight: Any, k: int) -> list[int]:
    cosine = torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(x, dim=-1).T
    chosen: list[int] = []
    while len(chosen) < k:
        total = {
            j: float((weight * cosine[:, [*chosen, j]].amax(1).clamp(min=0)).sum())
            for j in range(len(x))
            if j not in chosen
        }
        chosen.append(max(total, key=lambda j: round(total[j], 5)))
    return sorted(chosen)


@settings(max_examples=15, deadline=None)
@given(videos, st.integers(0, 1000), st.sampled_from([0.1, 0.3, 0.6]), st.booleans())
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, merges: bool) -> None:
    tokens, generator = tokens_at(grid, seed, channels=4), torch.Generator().manual_seed(seed)
    x, received = tokens.hidden + 0.6, torch.rand(len(tokens), generator=generator)
    seen = replace(tokens, hidden=x, signals={"received": received})
    reduction = OTTVid(segments="video" if merges else "none").reduce(seen, Site.output(keep))
    hidden = x[reduction.keep] if reduction.hidden is None else reduction.hidden
    found = dict(zip(reduction.keep.tolist(), hidden))
    assert sum(reduction.counts) == sum(tokens.budget(keep))
    group = reduction.groups().tolist() if reduction.groups is not None else None
    for span in range(len(tokens.counts)):
        own = [i for i in range(len(x)) if int(tokens.segment[i]) == span]
        alive = [i for i in own if (i in found if group is None else group[i] < len(found))]
        assert [own[j] for j in picked(x[own], received[own], len(alive))] == alive
    if group is not None:
        for place, (i, value) in enumerate(found.items()):
            members = [j for j in range(len(x)) if group[j] == place]
            assert i in members
            assert len({int(tokens.spans.clip[int(tokens.segment[j])]) for j in members}) == 1
            torch.testing.assert_close(value, x[members].mean(0), rtol=1e-4, atol=1e-5)


def test_what_is_carried_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    counts, pairs, like = (3, 2, 4, 2), [(0, 1), (2, 3)], torch.tensor([0.7, 0.9])
    x, place = torch.randn(11, 5, generator=generator), torch.rand(11, 2, generator=generator)
    cost, most, source = transport.carried(x, place, counts, pairs, like, 0.1)
    start = [0, 3, 5, 9, 11]
    for p, (a, b) in enumerate(pairs):
        here, there = range(start[a], start[a + 1]), range(start[b], start[b + 1])
        each = torch.tensor(
            [
                [
                    float(like[p]) * (1 - max(float(torch.cosine_similarity(x[i], x[j], dim=0)), 0.0))
                    + (1 - float(like[p])) * float((place[i] - place[j]).norm())
                    for j in there
                ]
                for i in here
            ]
        )
        kernel = torch.exp(-each / 0.1)
        u = torch.ones(len(here))
        for _ in range(50):
            v = (1 / len(there)) / (kernel.T @ u)
            u = (1 / len(here)) / (kernel @ v)
        amount = u[:, None] * kernel * v
        torch.testing.assert_close(cost[p], (amount * each).sum(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(most[list(there)], amount.amax(0), rtol=1e-4, atol=1e-6)
        assert source[list(there)].tolist() == [start[a] + i for i in amount.argmax(0).tolist()]
    assert most[[0, 1, 2]].tolist() == [0, 0, 0]


def test_shares_of_what_merges() -> None:
    assert transport.parts([0.0, 0.0, 9.0], [5, 5, 5], 6, 0.2) == [3, 3, 0]
    assert transport.parts([0.0, 9.0, 9.0], [2, 5, 5], 6, 0.2) == [2, 2, 2]  # the first one has room for two alone
    assert transport.parts([1.0, 1.0], [9, 9], 0, 0.2) == [0, 0]
    assert sum(transport.parts([0.1, 0.2, 0.3], [4, 4, 4], 11, 0.2)) == 11


def test_golden_values() -> None:
    """A token that stands for many comes first, then what it does not stand for."""
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [1.0, 0.1], [0.0, 1.0]])
    assert cover.represented(x, torch.ones(4), (4,), (1,)).tolist() == [1]
    assert cover.represented(x, torch.ones(4), (4,), (2,)).tolist() == [1, 3]


def test_options() -> None:
    with pytest.raises(ConfigError, match=r"temporal_share=2\.0 is not a share of the reduction"):
        OTTVid(temporal_share=2.0)
