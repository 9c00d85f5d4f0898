"""VisPruner: both halves of what stays by a plain loop and by golden values, and that it is served."""

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
from foveate import Host, Site, VisPruner
from foveate.errors import ConfigError
from foveate.ops import diverse
from foveate.serving.plan import Item, make_plan


def unlike(x: torch.Tensor, k: int, step: int) -> list[int]:
    """Those of the rows ``x`` that are left when duplicates have gone, as the paper's loop has it."""
    unit = torch.nn.functional.normalize(x, dim=-1)
    left = list(range(len(x)))
    while len(left) > k:
        even, odd = left[0::2], left[1::2]
        match = {i: max((float(unit[i] @ unit[j]) for j in odd), default=0.0) for i in even}
        even.sort(key=lambda i: -match[i])
        left = even[min(step, len(left) - k, len(even)) :] + odd
    return sorted(left)


@settings(max_examples=25, deadline=None)
@given(
    grids, st.integers(0, 1000), st.floats(0.01, 1.0), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.sampled_from([1, 3, 8])
)
def test_both_halves_by_loops(grid: Any, seed: int, keep: float, important: float, step: int) -> None:
    tokens, method = tokens_at(grid, seed), VisPruner(important=important, step=step)
    paid = torch.randint(0, 4, (len(tokens),), generator=torch.Generator().manual_seed(seed)) / 4
    start, expected = 0, []
    for n, kept in zip(tokens.counts, tokens.budget(keep)):
        order = sorted(range(start, start + n), key=lambda i: (-float(paid[i]), i))
        best = int(important * kept + 0.5)
        others = order[best:]
        expected += sorted(order[:best] + [others[i] for i in unlike(tokens.hidden[others], kept - best, step)])
        start += n
    assert method.reduce(replace(tokens, signals={"received": paid}), Site.output(keep)).keep.tolist() == expected


def test_golden_values() -> None:
    """Of two pairs of twins and a stranger, one twin of each pair stays."""
    x = torch.tensor([[1.0, 0, 0], [1.0, 0.01, 0], [0, 1.0, 0], [0, 1.0, 0.1], [0, 0, 1.0]])
    assert diverse.without_duplicates(x, (5,), (3,), 1).tolist() == [1, 3, 4]
    assert diverse.without_duplicates(x, (5,), (3,), 8).tolist() == [1, 3, 4]
    assert diverse.without_duplicates(x, (2, 3), (1, 1), 8).tolist() == [1, 3]


def test_many_rounds_choose_what_a_loop_chooses() -> None:
    """So many that rows are left out of what is compared on the way; one image is smaller than the other."""
    counts, k = (90, 61), (7, 5)
    x = torch.randn(sum(counts), 16, generator=torch.Generator().manual_seed(0))
    expected = unlike(x[:90], 7, 4) + [90 + i for i in unlike(x[90:], 5, 4)]
    assert diverse.without_duplicates(x, counts, k, 4).tolist() == expected


def test_options() -> None:
    with pytest.raises(ConfigError, match="step=0: give the tokens that leave in each round"):
        VisPruner(step=0)
    family: Any = foveate.list_families()["llava"]
    plan = make_plan(
        VisPruner(keep=0.25), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava")
    )
    assert plan.tower_counts(Item(((1, 6, 6),), ((1, 6, 6),))) == (9,)
