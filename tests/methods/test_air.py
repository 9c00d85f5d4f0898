"""AIR: which tokens of an image are remembered, against plain loops, and when they are added.

What is added, token by token, and where the memory goes is in tests/answers/test_inject.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from calls import LOGITS, generate
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import AIR, FastV, Host, Site, Tokens
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.ops.transport import sinkhorn
from foveate.serving.plan import make_plan

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]


def transport(costs: list[list[float]], epsilon: float) -> float:
    """Sinkhorn's algorithm, number by number."""
    rows, columns = len(costs), len(costs[0])
    plan = [[math.exp(-c / epsilon) for c in row] for row in costs]
    for _ in range(20):
        plan = [[p / sum(row) / rows for p in row] for row in plan]
        sums = [sum(column) for column in zip(*plan)]
        plan = [[p / total / columns for p, total in zip(row, sums)] for row in plan]
    return sum(p * c for a, b in zip(plan, costs) for p, c in zip(a, b))


def distances(method: AIR, tokens: Tokens) -> list[dict[tuple[int, int], tuple[float, list[int]]]]:
    """For each span and window: its distance, and the packed tokens in it."""
    found, start = [], 0
    for n, (_, width) in zip(tokens.counts, tokens.spans.shape):
        x = tokens.hidden[start : start + n].double()
        mean = x.sum(0) / max(n, 1)
        unusual = sorted(range(n), key=lambda i: -float((x[i] - mean).norm()))[: method.outliers]
        unit = [row / row.norm() for row in x]
        members: dict[tuple[int, int], list[int]] = {}
        for i in range(n):
            index = int(tokens.index[start + i])
            members.setdefault((index // width // method.window, index % width // method.window), []).append(i)
        found.append(
            {
                window: (
                    transport([[1 - float(unit[q] @ unit[p]) for p in inside] for q in unusual], method.epsilon),
                    [start + i for i in inside],
                )
                for window, inside in members.items()
            }
        )
        start += n
    return found


@settings(max_examples=25, deadline=None)
@given(grids, st.integers(0, 1000), st.sampled_from([(1, 1, 1.0), (3, 2, 0.9), (50, 3, 1.1)]), st.booleans())
def test_windows_by_loops(
    grid: list[tuple[int, int, int]], seed: int, options: tuple[int, int, float], pruned: bool
) -> None:
    """Of ragged spans, whole or with tokens gone: those near enough are kept, with unit length."""
    outliers, window, tau = options
    method, tokens = AIR(outliers=outliers, window=window, tau=tau, epsilon=0.2), tokens_at(grid, seed)
    if pruned:  # so that windows are empty, or some spans
        kept = tokens.keep_mask(torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed)) > 0.6)
        tokens = replace(tokens.select(kept.keep, kept.counts))
    memory = method.remember(tokens, Site.remember())
    expected, unsure, counts = [], set(), []
    for windows in distances(method, tokens):
        limit = tau * sum(d for d, _ in windows.values()) / max(len(windows), 1)
        near = [i for d, inside in windows.values() if d <= limit for i in inside]
        unsure |= {i for d, inside in windows.values() if abs(d - limit) < 1e-4 for i in inside}
        expected += sorted(near)
        counts.append(len(near))
    if unsure:  # rounding decides
        return
    assert memory.counts == tuple(counts)
    torch.testing.assert_close(memory.rows, torch.nn.functional.normalize(tokens.hidden[expected], dim=-1))


def test_transport_of_sets_of_different_sizes() -> None:
    """Sets side by side are what each is alone; one that is empty is at distance 0."""
    draw = torch.Generator().manual_seed(1)
    cost, there = torch.rand(3, 4, 5, generator=draw), torch.zeros(3, 4, 5, dtype=torch.bool)
    there[0, :2, :3] = there[1, :, :] = True
    found = sinkhorn(cost, there, 0.3)
    assert found[0] == pytest.approx(transport(cost[0, :2, :3].tolist(), 0.3), rel=1e-4)
    assert found[1] == pytest.approx(transport(cost[1].tolist(), 0.3), rel=1e-4)
    assert found[2] == 0
    assert sinkhorn(torch.full((1, 3, 2), 0.7), torch.ones(1, 3, 2, dtype=torch.bool), 0.1) == pytest.approx(0.7)


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_only_what_is_generated_is_reinforced_and_strength_0_is_stock(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with torch.no_grad():
        stock = generate(model, batch, **LOGITS).logits
        with foveate.compress(model, AIR(strength=0.0)):
            assert all(torch.equal(a, b) for a, b in zip(generate(model, batch, **LOGITS).logits, stock))
        with foveate.compress(model, AIR(outliers=4, window=2)) as handle:
            found = generate(model, batch, **LOGITS).logits
            assert set(handle.report().shares.values()) == {1.0}
    assert torch.equal(found[0], stock[0])
    assert not torch.allclose(found[1], stock[1], atol=1e-3)


def test_layers_are_late() -> None:
    host = Host("llava", 23, 32, has_cls=True)
    assert [site.layer for site in AIR().sites(host)[1:]] == list(range(26, 32))
    assert [site.layer for site in AIR(layers=(-1, 3, 31)).sites(host)[1:]] == [3, 31]
    assert [site.layer for site in AIR().sites(Host("llava", 2, 1, has_cls=True))[1:]] == [0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"outliers": 0}, "outliers=0 is too small: give at least 1"),
        ({"window": 0}, "window=0 is too small"),
        ({"tau": -1.0}, r"tau=-1\.0 is too small: give at least 0"),
        ({"strength": -1.0}, "strength=-1.0 is too small"),
        ({"epsilon": 0.0}, r"epsilon=0\.0 is not above 0"),
        ({"layers": ()}, r"layers=\(\) names nothing"),
        ({"keep": 0.5}, "removes nothing that a share could be of"),
    ],
    ids=str,
)
def test_what_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        AIR(**options)


def test_where_it_cannot_be() -> None:
    model = tiny.model("llava")
    with pytest.raises(UnsupportedSiteError, match="there is no decoder layer 9"):
        foveate.compress(model, AIR(layers=(9,)))
    with pytest.raises(UnsupportedSiteError, match="keeps something of an image beside the KV cache"):
        make_plan(AIR(), host_of(model), family_of(model.config), model.config)
    with foveate.compress(model, AIR() + FastV()):
        pass
