"""FlashVID: picks, trees over frames and clusters by plain loops; a tree's mean; options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import tokens_at

from foveate import FlashVID, Host, Site
from foveate.errors import ConfigError
from foveate.ops import frames

videos = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(1, 4)), min_size=1, max_size=2)


def cosine(a: Any, b: Any) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


def picked(x: Any, weight: Any, k: int) -> list[int]:
    """The ``k`` tokens that are chosen one by one."""
    n, chosen = len(x), list[int]()
    away = [[1 - cosine(a, b) for b in x] for a in x]
    while len(chosen) < k:
        near = {
            i: min((away[i][j] for j in (chosen or [j for j in range(n) if j != i])), default=2.0)
            for i in range(n)
            if i not in chosen
        }
        chosen.append(max(near, key=lambda i: round(float(weight[i]) * near[i], 6)))
    return chosen


@settings(max_examples=15, deadline=None)
@given(videos, st.integers(0, 1000), st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.0, 0.6]), st.booleans())
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, tau: float, dynamic: bool) -> None:
    tokens, generator = tokens_at(grid, seed, channels=5), torch.Generator().manual_seed(seed)
    hidden, received = tokens.hidden + 0.5, torch.rand(len(tokens), generator=generator)
    seen = replace(tokens, hidden=hidden, signals={"received": received})
    method = FlashVID(segments="dynamic" if dynamic else "none", tau=tau)
    reduction = method.reduce(seen, Site.output(keep))
    assert reduction.hidden is not None
    assert reduction.groups is not None
    budget = tokens.budget(keep)
    assert sum(reduction.counts) == sum(budget)
    found, group = dict(zip(reduction.keep.tolist(), reduction.hidden)), reduction.groups().tolist()
    start, span = 0, 0
    for n_frames, height, width in grid:
        cells = height * width
        for _ in range(n_frames):
            own = list(range(start, start + cells))
            k = int(0.7 * budget[span] + 0.5)
            for i in picked(hidden[own], received[own], k):
                torch.testing.assert_close(found[start + i], hidden[start + i])
                assert group.count(group[start + i]) == 1  # nobody joins it
            if not dynamic or n_frames == 1:
                assert sum(i in found for i in own) == budget[span]
            start, span = start + cells, span + 1


def test_a_tree_is_the_mean_of_all_its_members() -> None:
    """Of three frames of one scene; the last one joins through the second."""
    hidden = torch.tensor([[1.0, 0.0], [2.0, 0.1], [6.0, 0.2]])
    free = torch.ones(3, dtype=torch.bool)
    into, left = frames.trees(hidden, (1, 1, 1), [[0, 1, 2]], free, 0.8, [1, 0, 0])
    assert (into.tolist(), left) == ([0, 0, 0], [1, 0, 0])
    _, _, values = frames.clustered(hidden, (1, 1, 1), into, torch.tensor([0, 3, 3]), [1, 0, 0, 0], up_to_centres=True)
    torch.testing.assert_close(values, hidden.mean(0, True))
    into, left = frames.trees(
        hidden, (1, 1, 1), [[0, 1, 2]], free, 0.8, [1, 1, 0]
    )  # the most alike join, one is enough
    assert (into.tolist(), left) == ([0, 1, 1], [1, 1, 0])


def test_options() -> None:
    for options in (dict(tau=1.5), dict(diverse=-1.0)):
        with pytest.raises(ConfigError, match=r"is not a (limit for cosines|share of the survivors)"):
            FlashVID(**options)  # type: ignore[arg-type]
    assert FlashVID().mean(Host("qwen2_vl", 32, 28, False)) == pytest.approx(0.25)
