"""RedundancyLens: its layers, its channels against plain loops, and hollow attention against a mask written by hand.

What the FFN makes of some channels is in tests/answers/test_channels.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from answers.test_sight import by_hand
from calls import close, text_of
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import Channels, FastV, Host, RedundancyLens, Site
from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.schedule import survivors
from foveate.serving.plan import make_plan

HOST = Host("llava", blocks=23, layers=32, has_cls=True)
ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]


def places(method: RedundancyLens, layers: int = 8) -> list[str]:
    return [str(site) for site in method.sites(Host("llava", 23, layers, has_cls=True))]


def test_layers() -> None:
    """Hollow attention begins at the first layer of every run, and is lifted after its last."""
    half = ["decoder 4 (sight)", *(f"decoder {i} ffn (channels)" for i in (4, 5, 6, 7))]
    assert places(RedundancyLens()) == half
    assert places(RedundancyLens(layers=(-1,), hollow_layers=(1, 2, 4))) == [
        *(f"decoder {i} (sight)" for i in (1, 3, 4, 5)),
        "decoder 7 ffn (channels)",
    ]
    assert places(RedundancyLens(layers=(), hollow_layers=(0,))) == ["decoder 0 (sight)", "decoder 1 (sight)"]
    assert places(RedundancyLens(layers=(2,), hollow_layers=())) == ["decoder 2 ffn (channels)"]
    assert places(RedundancyLens(keep=1.0)) == []
    assert len(places(RedundancyLens(keep=0.3))) == 8, "seven layers, as half of them at a fifth leave more"
    assert RedundancyLens(keep=0.3).mean(HOST) == pytest.approx(0.3)
    assert RedundancyLens().mean(HOST) == pytest.approx(0.6)


@settings(max_examples=30, deadline=None)
@given(grids, st.integers(0, 1000), st.sampled_from([0.05, 0.3, 0.9]), st.booleans())
def test_channels_by_loops(grid: list[tuple[int, int, int]], seed: int, ratio: float, ties: bool) -> None:
    """Evenly spaced probes of each image or video say which channels all of its tokens use; of equal ones the first."""
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(seed))
    if ties:  # channels that are dead, or the same
        weight = weight[:, torch.arange(20) % 4] * (torch.arange(20) % 4 > 0)
    tokens = replace(tokens_at(grid, seed), activations=lambda x: torch.nn.functional.silu(x @ weight) * (x @ weight))
    answer = RedundancyLens(sample=0.3).answer(tokens, Site.channels(3, keep=ratio))
    assert isinstance(answer, Channels)
    assert answer.of is not None
    starts = torch.tensor([0, *tokens.counts]).cumsum(0).tolist()
    for clip, spans in enumerate(tokens.spans.clips):
        strength = torch.zeros(20)
        for span in spans:
            n = tokens.counts[span]
            k = survivors(n, 0.3)
            for probe in ((2 * i + 1) * n // (2 * k) for i in range(k)):
                x = tokens.hidden[starts[span] + probe]
                strength += (torch.nn.functional.silu(x @ weight) * (x @ weight)).abs()
            assert answer.of[span] == clip
        best = sorted(sorted(range(20), key=lambda c: -round(float(strength[c]), 4))[: max(1, round(ratio * 20))])
        assert answer.index[clip].tolist() == best


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_hollow_attention_is_a_mask(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    real = text_of(family, batch)

    def rule(layer: int, i: int, j: int, visual: list[bool], rank: list[int]) -> bool:
        return not (layer in (1, 2, 4) and visual[i] and visual[j] and abs(i - j) > 3)

    with torch.no_grad():
        expected = by_hand(family, model, batch, rule)[real]
        with foveate.compress(model, RedundancyLens(layers=(), hollow_layers=(1, 2, 4), window=3)):
            close(model(**batch).logits[real], expected)


def test_what_it_saves() -> None:
    """Gate, up and down of visual rows shrink; tokens and cache stay."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    with torch.no_grad(), foveate.compress(model, RedundancyLens(keep=0.5)) as handle:
        model(**batch)
        report = handle.report()
    assert report.shares["compute"] == pytest.approx(0.5, abs=0.02)
    assert (report.kv_ratio, report.shares["tokens"]) == (1.0, 1.0)
    assert report.flops["prefill"] < 0.9 * report.full_flops["prefill"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window": -1}, "window=-1 is negative"),
        ({"sample": 0.0}, r"sample=0\.0 is no share of tokens to probe"),
        ({"layers": ()}, r"layers=\(\) leaves nothing to do"),
        ({"keep": 0.5, "ratio": 0.2}, r"keep=0\.5 and ratio=0\.2 both say how much"),
    ],
    ids=str,
)
def test_what_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RedundancyLens(**options)


def test_where_it_cannot_be() -> None:
    model = tiny.model("llava")
    with pytest.raises(UnsupportedSiteError, match="there is no decoder layer 9"):
        foveate.compress(model, RedundancyLens(layers=(9,)))
    with pytest.raises(ConfigError, match=r"0\.9688 is the least"):
        RedundancyLens(layers=(3,), keep=0.5).sites(HOST)
    with pytest.raises(UnsupportedSiteError, match=r"who may attend to whom|which this engine runs whole"):
        make_plan(RedundancyLens(), host_of(model), family_of(model.config), model.config)
    with foveate.compress(model, RedundancyLens() + FastV()):
        pass
