"""HiPrune: anchors, their neighbours and registers by a plain loop and by golden values; its blocks; serving."""

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
from foveate import HiPrune, Host, Signal, Site
from foveate.errors import UnsupportedSiteError
from foveate.ops import grid as grid_ops
from foveate.serving.plan import Item, make_plan

HOST = Host("llava", blocks=23, layers=32, has_cls=True)
MIDDLE, DEEP = Signal("received", 1), Signal("received", 2)


@settings(max_examples=25, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.01, 1.0), st.sampled_from([0.0, 0.1, 0.7, 1.0]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, alpha: float) -> None:
    tokens = tokens_at(grid, seed)
    middle, deep = torch.randint(0, 5, (2, len(tokens)), generator=torch.Generator().manual_seed(seed)).tolist()
    start, expected = 0, []
    for n, kept, (height, width) in zip(tokens.counts, tokens.budget(keep), tokens.spans.shape):
        members = list(range(start, start + n))
        at = {divmod(int(tokens.index[i]), width): i for i in members}
        anchors = sorted(members, key=lambda i: (-middle[i], i))[: int(alpha * kept / 5 + 0.5)]
        near = [
            at[y + dy, x + dx]
            for (y, x), i in at.items()
            for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))
            if i in anchors and 0 <= y + dy < height and 0 <= x + dx < width
        ]
        level = {i: 2 * (i in anchors) or int(i in near) for i in members}
        expected += sorted(sorted(members, key=lambda i: (-level[i], -deep[i], i))[:kept])
        start += n
    seen = replace(tokens, signals={MIDDLE: torch.tensor(middle), DEEP: torch.tensor(deep)})
    assert HiPrune(alpha=alpha).reduce(seen, Site.output(keep, signals=(MIDDLE, DEEP))).keep.tolist() == expected


def test_neighbours_end_with_the_row() -> None:
    found = grid_ops.around(torch.arange(6), (6,), [(2, 3)], torch.tensor([2]))
    assert found.tolist() == [False, True, False, False, False, True]


def test_blocks() -> None:
    def asked(host: Host, **options: Any) -> list[int | None]:
        return [signal.layer for signal in HiPrune(**options).sites(host)[0].asked]

    assert asked(HOST) == [8, 22]  # the authors count from 1
    assert asked(replace(HOST, blocks=32, has_cls=False)) == [15, 31]
    assert asked(replace(HOST, blocks=1)) == [0, 0]
    assert asked(HOST, block=-2) == [21, 22]
    with pytest.raises(UnsupportedSiteError, match="no vision block 23 whose output is used"):
        HiPrune(block=23).sites(HOST)


def test_it_is_served() -> None:
    family: Any = foveate.list_families()["llava"]
    plan = make_plan(
        HiPrune(keep=0.25), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava")
    )
    assert plan.tower_counts(Item(((1, 6, 6),), ((1, 6, 6),))) == (9,)
