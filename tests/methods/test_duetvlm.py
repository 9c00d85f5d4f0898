"""DUET-VLM: dominant tokens and clusters by a plain loop, what the question ranks, and options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

from foveate import DuetVLM, Host, Site
from foveate.errors import ConfigError


@settings(max_examples=25, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.02, 1.0), st.sampled_from([1, 4]))
def test_what_leaves_the_tower_by_loops(grid: Any, seed: int, keep: float, width: int) -> None:
    grid = [(1, height, wide) for _, height, wide in grid]  # a budget of a video is shared out by its frames
    tokens = tokens_at(grid, seed)
    paid = torch.randint(0, 6, (len(tokens),), generator=torch.Generator().manual_seed(seed)).float()
    seen = replace(tokens, signals={**tokens.signals, "received": paid})
    reduction = DuetVLM(width=width, contextual=0.3).reduce(seen, Site.output(keep))
    assert reduction.hidden is not None
    found, start = dict(zip(reduction.keep.tolist(), reduction.hidden)), 0
    for n, kept in zip(tokens.counts, tokens.budget(keep)):
        order = sorted(range(start, start + n), key=lambda i: (-float(paid[i]), i))
        n_centres = int(0.3 * kept + 0.5)
        best, rest = order[: kept - n_centres], order[kept - n_centres :][: width * n_centres]
        centres = [rest[i * len(rest) // n_centres] for i in range(n_centres)]
        assert sorted(i for i in found if start <= i < start + n) == sorted(best + centres)
        members: dict[int, list[int]] = {i: [] for i in centres}
        keys = {i: tokens.keys[i].mean(0) for i in rest}
        for i in (i for i in rest if i not in centres):
            members[max(centres, key=lambda j: float(torch.cosine_similarity(keys[i], keys[j], dim=0)))].append(i)
        for i in best:
            torch.testing.assert_close(found[i], tokens.hidden[i])
        for i, group in members.items():
            mean = tokens.hidden[group].mean(0) if group else torch.zeros(6)
            torch.testing.assert_close(found[i], tokens.hidden[i] + mean)
        start += n


def test_the_decoder_keeps_what_words_look_at_on_average() -> None:
    tokens = tokens_at([(1, 1, 4), (1, 1, 4)], 0)
    place, paid = torch.tensor([[0, 1], [2, -1]]), torch.zeros(8, 2)
    paid[1], paid[2], paid[7] = torch.tensor([0.2, 0.2]), torch.tensor([0.3, 0.0]), torch.tensor([0.1, 0.0])
    seen = replace(tokens, signals={"next_rows": paid, "text_place": place})
    assert DuetVLM().reduce(seen, Site.decoder(3, 0.25)).keep.tolist() == [1, 7]


def test_options() -> None:
    with pytest.raises(ConfigError, match="width=0"):
        DuetVLM(width=0)
    host = Host("llava", 23, 32, True)
    assert DuetVLM().mean(host) == pytest.approx((16 * 205 + 8 * 102.5) / 32 / 576)
    assert DuetVLM(keep=0.1).mean(host) == pytest.approx(0.1)
