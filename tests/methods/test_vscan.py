"""VScan: both scans and the merge by plain loops and golden values; both recipes on tiny models."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import tokens_at

import foveate
from foveate import Host, Signal, Site, Tokens, VScan
from foveate.errors import ConfigError, FoveateError
from foveate.runtime.layout import frames, tokens_of
from foveate.serving.plan import Item, make_plan

HOST = Host("llava", blocks=23, layers=32, has_cls=True)
quick = settings(max_examples=40, deadline=None)
images = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=2)


def shown(tokens: Tokens, site: Site, shallow: torch.Tensor, deep: torch.Tensor) -> Tokens:
    return replace(tokens, signals=dict(zip(site.asked, (shallow, deep), strict=True)))


def by_hand(
    index: list[int], shape: tuple[int, int], shallow: list[float], deep: list[float], k: int, scan: str
) -> list[int]:
    """Survivors of one image, as places among its tokens."""
    side, (height, width) = (2 if scan == "llava" else 3), shape
    down, across = max(height // side, 1), max(width // side, 1)
    half, n, everyone = k // 2, down * across, range(len(index))
    quota = half // n if scan == "llava" else -(-half // n)
    most = quota * n if scan == "llava" else half
    taken: dict[tuple[int, int], int] = {}
    local: list[int] = []
    order = sorted(everyone, key=lambda i: (-shallow[i], i))
    for i in order:  # the best first, until its window has given its part
        cell = min(index[i] // width // side, down - 1), min(index[i] % width // side, across - 1)
        if taken.get(cell, 0) < quota and len(local) < most:
            taken[cell] = taken.get(cell, 0) + 1
            local.append(i)
    local += [i for i in order if i not in local][: most - len(local)]
    rest = [i for i in sorted(everyone, key=lambda i: (-deep[i], i)) if i not in local]
    return sorted(local + rest[: k - len(local)])


@quick
@given(images, st.integers(0, 1000), st.floats(0.02, 1.0), st.sampled_from(["llava", "qwen"]), st.booleans())
def test_scans_by_loops(grid: Any, seed: int, keep: float, scan: Any, has_cls: bool) -> None:
    """Few different values, so that many are equal; images smaller than a window; frames of a video; one token."""
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    method = VScan(ratios=(keep, 1.0), layers=(0, 2), scan=scan, window=2 if scan == "llava" else 3)
    site = Site.output(keep, signals=method.tower_signals(replace(HOST, has_cls=has_cls)))
    shallow, deep = torch.randint(1, 5, (2, len(tokens)), generator=generator).float() / 8
    heads = [torch.stack([x - 0.1, x + 0.1], 1) if has_cls else x for x in (shallow, deep)]
    reduction = method.reduce(shown(tokens, site, *heads), site)
    start, expected, merged = 0, [], []
    for n, k, shape in zip(tokens.counts, tokens.budget(keep), tokens.spans.shape):
        here = slice(start, start + n)
        index, a, b = (x[here].tolist() for x in (tokens.index, shallow, deep))
        kept = by_hand(index, shape, a, b, k, scan)
        groups = [[start + i] for i in kept]
        for i in set(range(n)) - set(kept):
            alike = [
                float(torch.cosine_similarity(tokens.hidden[start + i], tokens.hidden[start + j], dim=0)) for j in kept
            ]
            if kept:  # (of a frame that keeps nothing, nothing is merged)
                groups[max(range(len(kept)), key=alike.__getitem__)].append(start + i)
        expected += [start + i for i in kept]
        merged += [tokens.hidden[group].mean(0) for group in groups]
        start += n
    assert reduction.keep.tolist() == expected
    assert reduction.hidden is not None
    torch.testing.assert_close(reduction.hidden, torch.stack(merged) if merged else reduction.hidden)


@quick
@given(images, st.integers(0, 1000), st.floats(0.02, 1.0), st.sampled_from(["llava", "qwen"]))
def test_each_window_gives_its_part_and_the_whole_image_the_rest(grid: Any, seed: int, keep: float, scan: Any) -> None:
    """Every window of LLaVA's recipe has its equal part of half of the survivors, though a single one has all of the attention;
    in both recipes what the deep block likes best stays in any case, and no image changes another one."""
    tokens, draw = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    side = 2 if scan == "llava" else 3
    method = VScan(ratios=(keep, 1.0), layers=(0, 2), scan=scan, window=side)
    site = Site.output(keep, signals=method.tower_signals(replace(HOST, has_cls=False)))
    one_corner = (tokens.index == 0).float() * 50 + torch.rand(len(tokens), generator=draw)
    deep = torch.rand(len(tokens), generator=draw)
    kept = method.reduce(shown(tokens, site, one_corner, deep), site).keep.tolist()
    start = 0
    for n, k, (height, width) in zip(tokens.counts, tokens.budget(keep), tokens.spans.shape):
        here = [i for i in kept if start <= i < start + n]
        down, across = max(height // side, 1), max(width // side, 1)
        cells = [
            (min(i // width // side, down - 1), min(i % width // side, across - 1))
            for i in tokens.index[start : start + n].tolist()
        ]
        part = (k // 2 // (down * across)) if scan == "llava" else 0
        for cell in set(cells):
            assert sum(cells[i - start] == cell for i in here) >= min(part, cells.count(cell))
        by_depth = sorted(range(start, start + n), key=lambda i: -float(deep[i]))
        assert set(by_depth[: k - k // 2]) <= set(here)
        alone = tokens_at([(1, height, width)], 0)
        own = slice(start, start + n)
        alone = replace(alone, index=tokens.index[own], hidden=tokens.hidden[own], sizes=tokens.sizes[own])
        if k == alone.budget(keep)[0]:  # (frames of a video share a budget)
            by_itself = method.reduce(shown(alone, site, one_corner[own], deep[own]), site).keep.tolist()
            assert [start + i for i in by_itself] == here
        start += n


def test_golden_values() -> None:
    """Two windows: one has all of the attention. The local scan takes one of each, the global scan the best of the rest."""
    tokens = replace(tokens_of(frames([(1, 2, 4)])), hidden=torch.eye(8) + torch.eye(8).roll(1, 1) * 0.5)
    method = VScan(ratios=(0.5, 1.0), layers=(0, 2), scan="llava", window=2)
    site = method.sites(HOST)[0]
    shallow = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.7, 0.6, 0.0, 0.0])[:, None]
    deep = torch.tensor([0.9, 0.3, 0.0, 0.9, 0.2, 0.8, 0.1, 0.0])[:, None]
    reduction = method.reduce(shown(tokens, site, shallow, deep), site)
    assert reduction.keep.tolist() == [0, 1, 3, 5], "cells 0 and 3 of the windows; then 5 and 1 of the image"
    assert reduction.groups is not None
    assert reduction.groups().tolist() == [0, 1, 1, 2, 2, 3, 3, 0]
    free = replace(method, scan="qwen", ratios=(0.25, 1.0))
    reduction = free.reduce(shown(tokens, site, shallow[:, 0], deep[:, 0]), free.sites(HOST)[0])
    assert reduction.keep.tolist() == [0, 3], "the best of any window, and the best of the rest"


def test_recipes() -> None:
    output, decoder = VScan().sites(HOST)
    assert output.asked == (Signal("cls_row", 5), Signal("cls_row", 22))
    assert (output.keep, decoder.layer, decoder.keep) == (pytest.approx(96 / 576), 16, pytest.approx(32 / 96))
    assert VScan().mean(HOST) == pytest.approx(64 / 576)
    qwen = Host("qwen2_5_vl", blocks=32, layers=28, has_cls=False)
    output, decoder = VScan().sites(qwen)
    assert output.asked == (Signal("received", 7), Signal("received", 31))
    assert (decoder.layer, str(decoder.asked[0])) == (14, "unrotated_row")
    assert str(VScan(scan="llava").sites(qwen)[1].asked[0]) == "next_row"
    assert str(VScan(scan="qwen").sites(HOST)[1].asked[0]) == "unrotated_row"
    assert VScan(keep=0.5).mean(qwen) == pytest.approx(0.5)
    tower, inner = (
        math.log(site.keep) / math.log(share) for site, share in zip(VScan(keep=0.5).sites(qwen), (1 / 6, 1 / 3))
    )
    assert tower == pytest.approx(inner), "one power"
    assert [site.at for site in VScan(layers=(16,), ratios=(0.5,)).sites(HOST)] == ["decoder"]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_both_stages_on_a_model(family: str) -> None:
    """What the decoder keeps is a part of what the tower has kept."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5, "image"], [2]])
    with torch.no_grad(), foveate.compress(model, VScan(keep=0.4)) as handle:
        model(**batch)
        first, second = handle.report().visits
    assert (first.site, second.site) == ("tower_output", f"decoder {tiny.LAYERS // 2}")
    for kept, later in zip(first.kept, second.kept):
        assert set(later) < set(kept)


def test_what_cannot_be_and_what_an_engine_asks() -> None:
    with pytest.raises(ConfigError, match="window=0: give the side of a window in tokens, at least 1"):
        VScan(window=0)
    with pytest.raises(FoveateError, match="there is no vision block 40"):
        foveate.compress(tiny.model("llava"), VScan(block=40))
    with pytest.raises(FoveateError, match="there is no decoder layer 40"):
        VScan(layers=(0, 40)).sites(HOST)
    family: Any = foveate.list_families()["llava"]
    host = Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True)
    assert make_plan(VScan(), host, family, tiny.config("llava")).whole == ("next_row",)
    alone = make_plan(VScan(layers=(0,), ratios=(0.25,)), host, family, tiny.config("llava"))
    assert alone.inner == ()
    assert alone.tower_counts(Item(((1, 6, 6),), ((1, 6, 6),))) == (9,)
