"""VTC-CLS: the ensemble by a plain loop and by golden values, and what it asks the tower for."""

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
from foveate import VTCCLS, Host, Signal, Tokens
from foveate.errors import UnsupportedSiteError
from foveate.serving.plan import Item, make_plan

HOST = Host("llava", blocks=23, layers=32, has_cls=True)
quick = settings(max_examples=30, deadline=None)


def shown(tokens: Tokens, method: VTCCLS, host: Host, rows: torch.Tensor) -> Tokens:
    """Tokens with attention ``(blocks, N, H)`` of the blocks that the method asks for."""
    (site,) = method.sites(host)
    of = rows if host.has_cls else rows.mean(-1)
    return replace(tokens, signals=dict(zip(site.asked, of, strict=True)))


@quick
@given(grids, st.integers(0, 1000), st.floats(0.01, 1.0), st.sampled_from(["sum", "max", "min"]), st.booleans())
def test_ensembles_by_loops(grid: Any, seed: int, keep: float, ensemble: Any, has_cls: bool) -> None:
    """Few different values, so that many are equal: the earlier token stays."""
    tokens, host = tokens_at(grid, seed), replace(HOST, has_cls=has_cls)
    rows = torch.randint(0, 4, (7, len(tokens), 2), generator=torch.Generator().manual_seed(seed)) / 4
    method = VTCCLS(keep=keep, ensemble=ensemble)
    (site,) = method.sites(host)
    reduction = method.reduce(shown(tokens, method, host, rows), site)
    start, expected = 0, []
    for n, kept in zip(tokens.counts, tokens.budget(keep)):
        score = [[float(sum(row[i]) / 2) for row in rows] for i in range(start, start + n)]
        best = [{"sum": sum, "max": max, "min": min}[ensemble](each) for each in score]  # type: ignore[operator]
        expected += sorted(sorted(range(start, start + n), key=lambda i: (-best[i - start], i))[:kept])
        start += n
    assert reduction.keep.tolist() == expected


def test_golden_values() -> None:
    """A token that every block likes a little, one that the last block likes, and one that the first does."""
    tokens = tokens_at([(1, 1, 3)], 0)
    host = Host("llava", blocks=2, layers=4, has_cls=True)
    rows = torch.tensor([[[0.3], [0.0], [0.5]], [[0.3], [0.55], [0.0]]])
    for ensemble, best in (("sum", 0), ("max", 1), ("min", 0)):
        method: Any = VTCCLS(keep=1 / 3, block=0, ensemble=ensemble)  # type: ignore[arg-type]
        assert method.reduce(shown(tokens, method, host, rows), method.sites(host)[0]).keep.tolist() == [best]


def test_blocks() -> None:
    """Those of the authors in CLIP; in other towers the same share of the depth, at least the last one."""

    def asked(host: Host, **options: Any) -> list[int | None]:
        return [signal.layer for signal in VTCCLS(**options).sites(host)[0].asked]

    assert asked(HOST) == [16, 17, 18, 19, 20, 21, 22]
    assert asked(replace(HOST, blocks=1)) == [0]
    assert asked(HOST, block=-2) == [21, 22]
    assert VTCCLS().sites(replace(HOST, has_cls=False))[0].asked[0] == Signal("received", 16)
    for block in (23, -24):
        with pytest.raises(
            UnsupportedSiteError, match=f"no vision block {block} whose output is used: there are 23, 0 to 22"
        ):
            VTCCLS(block=block).sites(HOST)


def test_blocks_of_a_real_tower_are_read() -> None:
    """What ranks is the attention of all blocks asked for: the sum over two is that of each alone."""
    model, batch, scores = tiny.model("llava"), tiny.inputs("llava", [[3, "image", 5, "image"]]), []

    class Spy(VTCCLS):
        def score(self, tokens: Any, site: Any) -> Any:
            scores.append(super().score(tokens, site))
            return scores[-1]

    last = foveate.handle.host_of(model).blocks - 1
    with torch.no_grad():
        for block in (last - 1, last):
            with foveate.compress(model, Spy(block=block)):
                model(**batch)
        with foveate.compress(model, Spy(block=last - 1, ensemble="max")):
            model(**batch)
    both, alone, larger = scores
    first = both - alone
    assert bool((first > 0).all())
    torch.testing.assert_close(torch.maximum(first, alone), larger)


def test_it_is_served() -> None:
    family: Any = foveate.list_families()["llava"]
    plan = make_plan(VTCCLS(keep=0.25), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava"))
    assert plan.tower_counts(Item(((1, 6, 6),), ((1, 6, 6),))) == (9,)
