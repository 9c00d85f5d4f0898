"""HoloV: quotas and choices by a plain loop, with the variance that the authors' code adds; serving."""

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
from foveate import HoloV, Host, Site
from foveate.errors import ConfigError
from foveate.serving.plan import Item, make_plan


@settings(max_examples=30, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.01, 1.0), st.sampled_from([1, 3, 16]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, crops: int) -> None:
    tokens = tokens_at(grid, seed)
    paid = torch.randint(0, 6, (len(tokens),), generator=torch.Generator().manual_seed(seed)).float()
    start, expected = 0, []
    for n, kept in zip(tokens.counts, tokens.budget(keep)):
        sizes = [n // crops + (i < n % crops) for i in range(crops)]
        members, first = [], start
        for size in sizes:
            members.append(list(range(first, first + size)))
            first += size
        weight = torch.tensor([float(paid[each].mean()) if each else 0.0 for each in members])
        quota = (weight / weight.sum().clamp(min=1e-30) * kept).floor().int().tolist()
        best = sorted(range(crops), key=lambda i: (-float(weight[i]), i))[: kept - sum(quota)]
        order = [sorted(each, key=lambda i: (-float(paid[i]), i)) for each in members]
        chosen = [i for c, each in enumerate(order) for i in each[: quota[c] + (c in best)]]
        others = sorted(set(range(start, start + n)) - set(chosen), key=lambda i: (-float(paid[i]), i))
        expected += sorted(chosen + others[: kept - len(chosen)])
        start += n
    method = HoloV(crops=crops)
    assert method.reduce(replace(tokens, signals={"received": paid}), Site.output(keep)).keep.tolist() == expected


def test_the_variance_of_the_code_changes_no_share() -> None:
    """It is brought to the mean attention of its crop, so all crops get the same factor."""
    generator = torch.Generator().manual_seed(0)
    paid, shares = torch.rand(4, 9, generator=generator) / 36, []
    for attention in paid * 1e3:
        unit = torch.nn.functional.normalize(torch.randn(9, 5, generator=generator), dim=-1)
        alike = (unit @ unit.T).fill_diagonal_(0)
        variance = (alike - alike.sum(1, True) / 8).square().sum(1) / 8
        shares.append((attention + 0.09 * variance * attention.mean() / (variance.mean() + 1e-6)).mean())
    torch.testing.assert_close(torch.stack(shares) / sum(shares), paid.mean(1) / paid.mean(1).sum(), rtol=1e-5, atol=0)


def test_options() -> None:
    with pytest.raises(ConfigError, match="crops=0: give the parts of an image, at least 1"):
        HoloV(crops=0)
    family: Any = foveate.list_families()["llava"]
    plan = make_plan(HoloV(keep=0.25), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava"))
    assert plan.tower_counts(Item(((1, 6, 6),), ((1, 6, 6),))) == (9,)
