"""MustDrop: both limits, what never leaves and windows, by plain loops; caches; options."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import Host, MustDrop, Signal, Site
from foveate.errors import ConfigError

PAID = Signal("received", at="tower")


@settings(max_examples=20, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.0, 0.5), st.booleans())
def test_who_stays_by_loops(grid: Any, seed: int, key: float, first: bool) -> None:
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    rows = torch.rand(len(tokens), 3, generator=generator) ** 4
    paid = torch.rand(len(tokens), generator=generator)
    seen = replace(tokens, signals={"text_rows": rows, PAID: paid}, state={})
    site = Site.decoder(2, signals=("text_rows", PAID) if first else ("text_rows",))
    method, expected = MustDrop(together=0.04, alone=0.3, key=key), list[int]()
    found = method.reduce(seen, site).keep.tolist()
    starts = [0, *accumulate(tokens.pool_counts)]  # a video is judged as a whole
    for own in (range(start, end) for start, end in pairwise(starts)):
        total = float(rows[own].sum())
        stays = {i for i in own if float(rows[i].sum()) >= 0.04 * total or float(rows[i].max()) >= 0.3}
        never = sorted(own, key=lambda i: -float(paid[i]))[: -int(-key * len(own) // 1)] if first else []
        score = {i: max(float(rows[i].sum()) / total / 0.04, float(rows[i].max()) / 0.3) for i in own}
        expected += sorted(stays | {*never} or {max(own, key=lambda i: score[i])})
    assert found == expected


@settings(max_examples=20, deadline=None)
@given(grids, st.integers(0, 1000), st.sampled_from([0.0, 0.5, 0.9]))
def test_windows_by_loops(grid: Any, seed: int, alike: float) -> None:
    tokens = tokens_at(grid, seed, channels=4)
    seen = replace(tokens, hidden=tokens.hidden + 0.8)
    reduction = MustDrop(alike=alike).reduce(seen, Site.tower(1))
    assert reduction.hidden is not None
    found, start, expected = dict(zip(reduction.keep.tolist(), reduction.hidden)), 0, dict[int, Any]()
    for span, n in enumerate(tokens.counts):
        width, cells = tokens.spans.shape[span][1], dict[Any, list[int]]()
        for i in range(start, start + n):
            place = int(tokens.index[i])
            cells.setdefault((place // width // 3, place % width // 3), []).append(i)
        for members in cells.values():
            members.sort(key=lambda i: int(tokens.index[i]))
            x = seen.hidden[members]
            pairs = [float(torch.cosine_similarity(x[a], x[b], dim=0)) for a in range(len(x)) for b in range(a)]
            if pairs and sum(pairs) / len(pairs) >= alike:
                size = tokens.sizes[members]
                expected[members[len(members) // 2]] = (x * size[:, None]).sum(0) / size.sum()
            else:
                expected |= {i: seen.hidden[i] for i in members}
        start += n
    assert sorted(found) == sorted(expected)
    for i, value in expected.items():
        torch.testing.assert_close(found[i], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [MustDrop(), MustDrop(keep=0.5), MustDrop(threshold=1e9, alike=1.0)], ids=repr)
def test_caches_hold_what_is_left_in_the_end(method: MustDrop) -> None:
    model = tiny.model("qwen2_5_vl")
    with torch.no_grad(), foveate.compress(model, method) as handle:
        model.generate(**tiny.inputs("qwen2_5_vl", [[3, (8, 8), 4]]), max_new_tokens=2, do_sample=False)
        report = handle.report()
    sites = [(visit.site, sum(visit.after)) for visit in report.visits]
    last = next(n for site, n in reversed(sites) if "decoder" in str(site))
    assert last >= 1
    assert all(n == last for site, n in sites if "cache" in str(site))
    if method.threshold:  # what never leaves is 8 % of 16, rounded up
        assert last == 2


def test_options() -> None:
    for options, sentence in (
        (dict(alone=0.0), "a limit of 0 is none"),
        (dict(together=2.0), r"together=2\.0 is not a share of attention"),
        (dict(alike=2.0), r"alike=2\.0 is not a limit for cosines"),
        (dict(key=2.0), r"key=2\.0 is not a share of the tokens"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            MustDrop(**options)  # type: ignore[arg-type]
    host = Host("llava", 23, 32, True)
    assert [site.layer for site in MustDrop().sites(host) if site.at == "decoder"] == [3, 7, 11, 15]
    assert [site.layer for site in MustDrop().sites(host) if site.at == "cache"] == list(range(2, 15))
    assert MustDrop(keep=1 / 3).mean(host) == pytest.approx(1 / 3)
