"""FiCoCo-V: what leaves and where it goes, by plain loops; queries are those of the stock tower; its blocks; options."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import FiCoCoV, Host, Signal, Site, Tokens
from foveate.errors import ConfigError

CLS = Signal("queries", of="cls")


def redundancy(method: FiCoCoV, q: Any, k: Any, cls: Any, index: list[int], width: int) -> list[float]:
    """Of the tokens of an image, whose queries and keys are ``(n, D)``."""
    paid = [sum(float(a @ b) for b in k) / len(k) for a in q]
    asked = [float(cls @ b) for b in k] if cls is not None else [0.0] * len(k)
    length, of_cls = (math.sqrt(sum(x * x for x in xs)) or 1.0 for xs in (paid, asked))
    score = [(1 - method.weight) * p / length - method.weight * a / of_cls for p, a in zip(paid, asked)]
    windows: dict[tuple[int, int], int] = {}
    for i, place in enumerate(index):
        window = place // width // 2, place % width // 2
        worst = windows.get(window)
        if worst is None or round(score[i], 6) > round(score[worst], 6):
            windows[window] = i
    worse = {i: score[i] * method.penalty if score[i] > 0 else score[i] / method.penalty for i in windows.values()}
    return [worse.get(i, s) for i, s in enumerate(score)]


@settings(max_examples=30, deadline=None)
@given(
    grids,
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0]),
    st.booleans(),
    st.sampled_from(
        [FiCoCoV(), FiCoCoV(weight=0.8, penalty=1.0, quantile=0.5), FiCoCoV(quantile=0.0), FiCoCoV(quantile=1.0)]
    ),
)
def test_what_becomes_of_tokens_by_loops(grid: Any, seed: int, keep: float, has_cls: bool, method: FiCoCoV) -> None:
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    queries = torch.randn(len(tokens), 2, 3, generator=generator)
    cls = torch.randn(len(tokens.counts), 2, 3, generator=generator) if has_cls else None
    signals: dict[Any, Any] = {"queries": queries, "keys": tokens.keys} | ({} if cls is None else {CLS: cls})
    seen = replace(tokens, signals=signals)
    site = Site.tower(2, keep, mid=True)
    reduction, start = method.reduce(seen, site), 0
    found, group = dict(zip(reduction.keep.tolist(), reduction.hidden)), reduction.groups().tolist()  # type: ignore[arg-type, misc]
    for span, (n, kept) in enumerate(zip(tokens.counts, tokens.budget(site))):
        members = list(range(start, start + n))
        q, k = (x[members].flatten(1).double() for x in (queries, tokens.keys))
        own = None if cls is None else cls[span].flatten().double()
        worst = redundancy(method, q, k, own, tokens.index[members].tolist(), tokens.spans.shape[span][1])
        stays = sorted(sorted(range(n), key=lambda i: worst[i])[:kept])
        assert [start + i for i in stays] == [i for i in members if i in found]
        value, mass = {j: tokens.hidden[start + j].double() for j in stays}, dict.fromkeys(stays, 1.0)
        for i in range(n):
            if i not in stays and not stays:  # a frame of a video may be lost as a whole
                assert group[start + i] == len(found)
            if i in stays or not stays:
                continue
            alike = {j: float(q[i] @ k[j]) / (2 * 3**0.5) for j in stays}
            several = max(1, len(stays) - 1 - int(method.quantile * (len(stays) - 1)))
            targets = sorted(alike, key=lambda j: -alike[j])[:several]
            assert reduction.keep[group[start + i]] == start + targets[0]
            total = sum(math.exp(alike[j]) for j in targets)
            for j in targets:
                share = math.exp(alike[j]) / total
                value[j], mass[j] = value[j] + share * tokens.hidden[start + i], mass[j] + share
        for j in stays:
            torch.testing.assert_close(found[start + j].double(), value[j] / mass[j], rtol=1e-4, atol=1e-5)
        start += n


def test_golden_values() -> None:
    """Two pairs of tokens that attend to each other: of each, one stays for both."""
    tokens = tokens_at([(1, 1, 4)], 0)
    tokens = tokens.select(tokens.index.argsort(), tokens.counts)
    hidden = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    keys = torch.tensor([[4.0, 0], [3.0, 0], [0, 4.0], [0, 3.0]])[:, None]
    seen = replace(tokens, hidden=hidden, signals={"queries": keys, "keys": keys})
    reduction = FiCoCoV().reduce(seen, Site.tower(2, 0.5, mid=True))
    assert reduction.keep.tolist() == [1, 3]
    torch.testing.assert_close(reduction.hidden, torch.tensor([[2.0], [15.0]]))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_queries_are_those_of_the_tower(family: str) -> None:
    """Their products with the keys are the attention that the tower pays, and both are of the same tokens."""
    heard: dict[str, Any] = {}
    has_cls = family == "llava"

    class Hear(FiCoCoV):
        def blocks(self, host: Host) -> Any:
            signals = ("queries", "keys", CLS, Signal("keys", of="cls"), "cls_row") if has_cls else ("queries", "keys")
            return [Site.tower(1, mid=True, signals=signals)]

        def reduce(self, tokens: Tokens, site: Site) -> Any:
            heard.update({str(signal): tokens.signal(signal) for signal in site.asked})
            return tokens.keep_mask(torch.ones_like(tokens.index, dtype=torch.bool))

    model = tiny.model(family)
    with torch.no_grad(), foveate.compress(model, Hear()):
        model(**tiny.inputs(family, [[3, "image" if has_cls else (8, 8), 5]]))
    assert heard["queries"].shape == heard["keys"].shape
    if has_cls:
        keys = torch.cat([heard["keys of cls"], heard["keys"]])
        rows = torch.einsum("hd,nhd->nh", heard["queries of cls"][0], keys) / keys.shape[-1] ** 0.5
        torch.testing.assert_close(rows.softmax(0)[1:], heard["cls_row"], rtol=1e-4, atol=1e-5)


def test_blocks_are_those_of_the_authors_code() -> None:
    """42 of 576 tokens leave in each block from the thirteenth on, as far as the blocks are used."""
    sites = FiCoCoV().sites(Host("llava", 23, 32, True))
    assert [site.layer for site in sites] == list(range(12, 23))
    tokens, counts = tokens_at([(1, 24, 24)], 0), [576]
    for site in sites:
        counts += tokens.budget(site)
        tokens = tokens.select(torch.arange(counts[-1]), (counts[-1],))
    assert [a - b for a, b in zip(counts, counts[1:])] == [42] * 11


def test_options() -> None:
    for options in (dict(weight=1.5), dict(quantile=-0.1), dict(penalty=0.5), dict(penalty=math.inf)):
        with pytest.raises(ConfigError, match=next(iter(options))):
            FiCoCoV(**options)
