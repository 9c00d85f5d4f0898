"""FasterVLM: its ranking by a plain loop, what it reads, and that it is served."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import FasterVLM, Host
from foveate.serving.plan import Item, make_plan

HOST = Host("llava", blocks=23, layers=32, has_cls=True)


@settings(max_examples=25, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.01, 1.0), st.booleans())
def test_the_ranking_by_a_loop(grid: Any, seed: int, keep: float, has_cls: bool) -> None:
    """Few different values, so that many are equal: the earlier token stays."""
    tokens, method = tokens_at(grid, seed), FasterVLM(keep=keep)
    row = torch.randint(0, 4, (len(tokens), 2), generator=torch.Generator().manual_seed(seed)) / 4
    (site,) = method.sites(replace(HOST, has_cls=has_cls))
    seen = replace(tokens, signals={"cls_row": row} if has_cls else {"received": row.sum(1)})
    start, expected = 0, []
    for n, kept in zip(tokens.counts, tokens.budget(keep)):
        expected += sorted(sorted(range(start, start + n), key=lambda i: (-float(row[i].sum()), i))[:kept])
        start += n
    assert method.reduce(seen, site).keep.tolist() == expected


def test_what_it_asks_and_keeps() -> None:
    assert [str(asked) for asked in FasterVLM().sites(HOST)[0].asked] == ["cls_row"]
    assert [str(asked) for asked in FasterVLM().sites(replace(HOST, has_cls=False))[0].asked] == ["received"]
    assert tokens_at([(1, 24, 24)], 0).budget(FasterVLM().sites(HOST)[0]) == (29,)


def test_it_is_served() -> None:
    family: Any = foveate.list_families()["llava"]
    plan = make_plan(
        FasterVLM(keep=0.25), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava")
    )
    assert plan.tower_counts(Item(((1, 6, 6),), ((1, 6, 6),))) == (9,)
