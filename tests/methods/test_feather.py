"""FEATHER: the grid and the best of the others by a plain loop; attention without positions; options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from by_loops import best
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import Feather, Signal, Site
from foveate.errors import ConfigError
from foveate.schedule import Schedule


@settings(max_examples=25, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.02, 1.0), st.sampled_from([1, 2, 3]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, stride: int) -> None:
    tokens = tokens_at(grid, seed)
    paid = torch.randint(0, 4, (len(tokens), 2), generator=torch.Generator().manual_seed(seed)).float()
    seen = replace(tokens, signals={"unrotated_row": paid})
    first, second = Site.cascade("decoder", Schedule(((1, keep), (2, keep / 2))))
    method, start = Feather(stride=stride), 0
    found, later = (method.reduce(seen, site).keep.tolist() for site in (first, replace(second, shares=(1.0, keep))))
    for span, (n, kept) in enumerate(zip(tokens.counts, tokens.budget(keep))):
        width = tokens.spans.shape[span][1]
        heads = paid[start : start + n] / paid[start : start + n].sum(0).clamp(min=1e-30)
        score = heads.mean(1).tolist()
        place = tokens.index[start : start + n].tolist()
        on_grid = [i // width % stride == 0 and i % width % stride == 0 for i in place]
        wanted = best([s + 10 * there for s, there in zip(score, on_grid)], kept)
        assert [i - start for i in found if start <= i < start + n] == sorted(wanted)
        assert [i - start for i in later if start <= i < start + n] == sorted(best(score, kept))
        start += n


def test_it_looks_without_positions() -> None:
    """Moving an image in the prompt changes what `next_row` says, and not this, over the image."""
    model = tiny.model("llava")
    heard = []

    class Hear(Feather):
        def reduce(self, tokens: Any, site: Site) -> Any:
            heard.append([tokens.signal(each) for each in site.asked])
            return tokens.keep_mask(torch.ones_like(tokens.index, dtype=torch.bool))

        def sites(self, host: Any) -> Any:
            return [Site.decoder(0, signals=(Signal("unrotated_row"), Signal("next_row")))]

    batch = tiny.inputs("llava", [[3, "image", 5]])
    with torch.no_grad(), foveate.compress(model, Hear()):
        model(**batch)
        positions = torch.arange(batch["input_ids"].shape[1])[None]
        positions[:, -1] += 7  # the last token is farther away
        model(**batch, position_ids=positions)
    plain, near = (each / each.sum(0) for each in heard[0])
    plain_again, far = (each / each.sum(0) for each in heard[1])
    torch.testing.assert_close(plain, plain_again)
    assert not torch.allclose(near, far)
    assert not torch.allclose(plain, near)


def test_options() -> None:
    with pytest.raises(ConfigError, match="stride=0"):
        Feather(stride=0)
