"""FlowCut: scores of blocks, how many leave, and who, by plain loops; without a CLS token; options."""

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
from foveate import FlowCut, Host, Signal
from foveate.errors import ConfigError
from foveate.handle import host_of


@settings(max_examples=20, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.05, 0.9), st.sampled_from([4, 5]), st.booleans())
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, blocks: int, has_cls: bool) -> None:
    grid = [(1, h, w) for _, h, w in grid]  # a budget of a video is shared out by its frames
    host = Host("llava", blocks, 32, has_cls)
    method: Any = FlowCut(keep=keep).resolve(host)
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    names, state = torch.arange(len(tokens)), dict[str, Any]()
    target = tokens.budget(keep)
    scores: list[float] = [0.0] * len(tokens)
    begun = False
    for site in method.sites(host):
        signals: dict[Any, Any] = {}
        for each in site.asked:
            n = len(tokens) if each.of == "visual" else len(tokens.counts)
            signals[each] = torch.rand(n, generator=generator) if each.kind == "received" else None
            if signals[each] is None:
                shape = (n, 2) if each.kind == "cls_row" else (n, 2, 3)
                signals[each] = torch.rand(*shape, generator=generator) - (0.5 if each.kind == "values" else 0.0)
        reduction = method.reduce(replace(tokens, signals=signals, state=state), site)
        start, expected = 0, list[int]()
        read = [each.layer for each in site.asked if each.kind != "values"]
        assert read == [b for b in (site.layer - 2, site.layer - 1) if b >= 0]
        rest = blocks - 1 - site.layer
        assert rest % 2 == 0
        for image, n in enumerate(tokens.counts):
            own = range(start, start + n)
            for block in read:
                paid, values = _read(signals, block, has_cls, list(own))
                score = [float(p) for p in paid / paid.sum()]
                if has_cls:
                    cls = signals[Signal("values", block, of="cls")][image]
                    alike = torch.stack([(values[i] * cls).sum(-1) for i in range(n)] + [(cls * cls).sum(-1)])
                    mean = alike.softmax(0).mean(1)[:-1]
                    score = [s + float(m) for s, m in zip(score, mean / mean.sum())]
                for i, s in zip(own, score):
                    new = s * float(values[i - start].mean(0).abs().sum())
                    scores[int(names[i])] = new if not begun and block == read[0] else (scores[int(names[i])] + new) / 2
            share = paid / paid.sum()
            entropy = -sum(float(p) * math.log(float(p)) for p in share if p > 0)
            clear = 1 - (entropy / math.log(n)) ** 2 if n > 1 else 0.0
            k = min(target[image], n)
            left = max(n - round((n - k) / rest**0.5 * clear), k) if rest else k
            expected += sorted(sorted(own, key=lambda i: -scores[int(names[i])])[:left])
            start += n
        assert reduction.keep.tolist() == expected
        names, tokens, begun = names[reduction.keep], reduction.survivors(tokens), True
    assert tokens.counts == target


def _read(signals: dict[Any, Any], block: int, has_cls: bool, own: list[int]) -> tuple[Any, Any]:
    """Attention of a block to some tokens, mean over heads, and their values."""
    paid = signals[Signal("cls_row" if has_cls else "received", block)][own]
    return paid.mean(-1) if has_cls else paid, signals[Signal("values", block)][own]


def test_what_a_prompt_has_left_is_not_that_of_the_next() -> None:
    """Two prompts of different sizes, one after the other."""
    model = tiny.model("qwen2_5_vl")
    with torch.no_grad(), foveate.compress(model, FlowCut(keep=0.5)) as handle:
        for size in ((8, 8), (4, 8)):
            model(**tiny.inputs("qwen2_5_vl", [[3, size, 5]]))
            report = handle.report()
            assert report.shares["tokens"] == pytest.approx(0.5, abs=1 / report.visual_tokens)


def test_options() -> None:
    with pytest.raises(ConfigError, match="depth=99"):
        FlowCut(depth=99).sites(host_of(tiny.model("llava")))
    assert isinstance(FlowCut().sites(Host("llava", 23, 32, True))[0].asked[0], Signal)
    assert [site.layer for site in FlowCut().sites(Host("llava", 23, 32, True))] == list(range(2, 23, 2))
