"""VLM-Pruner: pivots, rounds and merged values by a plain loop; options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

from foveate import Site, VLMPruner
from foveate.errors import ConfigError
from foveate.ops.outward import outward


def chosen(x: Any, place: Any, first: list[int], k: int, threshold: float, step: int, far: float) -> list[int]:
    """Tokens in the order in which rounds choose them."""
    found = list(first)

    def against(i: int) -> float:
        alike = max(float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in found)
        return alike * (1 + far * min(float((place[i] - place[j]).norm()) for j in found))

    while len(found) < k:
        order = sorted((i for i in range(len(x)) if i not in found), key=lambda i: round(against(i), 6))
        for at in range(0, len(order), step):
            score = {i: against(i) for i in order[at : at + step]}
            able = sorted((i for i in score if score[i] < threshold), key=lambda i: score[i])
            found += able[: k - len(found)]
        threshold += 0.1
    return found


@settings(max_examples=20, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.1, 0.95), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.5]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, pivots: int, far: float) -> None:
    grid = [(t, min(h, 4), min(w, 4)) for t, h, w in grid]
    tokens = tokens_at(grid, seed, channels=5)
    reduction = VLMPruner(pivots=pivots, far=far).reduce(tokens, Site.decoder(2, keep))
    values = tokens.hidden[reduction.keep] if reduction.hidden is None else reduction.hidden
    found, start = dict(zip(reduction.keep.tolist(), values)), 0
    for (height, width), n, kept in zip(tokens.spans.shape, tokens.counts, tokens.budget(keep)):
        rows = slice(start, start + n)
        x, keys, index = tokens.hidden[rows], tokens.keys[rows].flatten(1), tokens.index[rows]
        own = {i - start: value for i, value in found.items() if start <= i < start + n}
        start += n
        if kept in (0, n):
            assert sorted(own) == list(range(kept))
            continue
        first = [int(keys.norm(dim=1).argmax())]
        while len(first) < min(pivots, kept):
            first.append(int(torch.cdist(keys, keys[first]).min(1).values.argmax()))
        place = torch.stack([index // width, index % width], 1) / (height**2 + width**2) ** 0.5
        assert sorted(own) == sorted(chosen(x, place, first, kept, 0.8, 16, far))
        members: dict[int, list[int]] = {i: [] for i in own}
        for i in (i for i in range(n) if i not in own):
            members[max(own, key=lambda j: float(torch.cosine_similarity(x[i], x[j], dim=0)))].append(i)
        for i, group in members.items():
            weight = [max(float(torch.cosine_similarity(x[i], x[j], dim=0)), 0.0) for j in group]
            value = x[i]
            if sum(weight):
                value = 0.3 * x[i] + 0.7 * sum(w * x[j] for w, j in zip(weight, group)) / sum(weight)
            torch.testing.assert_close(own[i], value, rtol=1e-4, atol=1e-5)


def test_a_few_at_a_time() -> None:
    """Several images, each with a size and a budget of its own, of which one is chosen already, and one keeps nothing."""
    generator = torch.Generator().manual_seed(0)
    counts, k, first = (7, 1, 12, 3), (4, 1, 5, 0), [2, 7, 9, 15]
    x, place = torch.randn(23, 4, generator=generator) + 0.4, torch.rand(23, 2, generator=generator)
    found = outward(x, place, counts, k, torch.tensor(first), 0.3, 3, 0.5).tolist()
    expected, start = list[int](), 0
    for n, kept in zip(counts, k):
        begun = [i - start for i in first if start <= i < start + n]
        if kept:
            expected += [
                start + i
                for i in sorted(chosen(x[start : start + n], place[start : start + n], begun, kept, 0.3, 3, 0.5))
            ]
        start += n
    assert found == expected


def test_options() -> None:
    with pytest.raises(ConfigError, match="pivots=0"):
        VLMPruner(pivots=0)
