"""One call: clocks measure the stage that they are named after, FLOPs counted are those of the formula, bytes are real."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from snapshot import state_of

from foveate import ADSC, IPCV, LUVC, Downsample, FastV, Host, Method, Reduction, Site, Stride, Tokens, ToMe, compress
from foveate.lab.bench import shapes
from foveate.lab.bench.measure import probe, timed
from foveate.lab.bench.workload import Shaped
from foveate.runtime.trace import tick

SMALL = [name for name in shapes.SHAPES if name.startswith("small-")]
METHODS = [Downsample(keep=0.5), LUVC(), IPCV(), ADSC(), ToMe() + FastV(ratio=0.5)]
NAP = 0.5  # seconds: much more than a tiny model takes


@cache
def subject(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model and a prompt for it."""
    config = shapes.config_of(name)
    prompts = Shaped(config)
    return shapes.build(config, torch.float32, torch.device("cpu"), None, 0), prompts.inputs(prompts.layout(64), 1, 0)


@dataclass(frozen=True)
class Slow(Method):
    """Keeps everything and takes its time."""

    place: str = "decoder"

    def sites(self, host: Host) -> Sequence[Site]:
        place: Any = self.place
        return [Site(place, 1 if place in ("tower", "decoder") else 0)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        time.sleep(NAP)
        return Reduction(torch.arange(len(tokens)), tokens.counts)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize(
    ("place", "stage"), [("tower", "tower"), ("tower_output", "tower"), ("lm_entry", "prefill"), ("decoder", "prefill")]
)
def test_a_method_is_part_of_the_stage_it_acts_in(family: str, place: str, stage: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    stock, slow = timed(model, inputs, None, 3), timed(model, inputs, Slow(place=place), 3)
    assert max(stock.values()) < NAP, "or nothing can be told apart"
    assert slow[stage] >= NAP
    assert slow["first"] >= slow["tower"] + slow["prefill"]
    assert slow["total"] < 2 * NAP
    assert slow[{"tower": "prefill", "prefill": "tower"}[stage]] < NAP
    assert slow["decode"] < NAP


def test_times_fit_together() -> None:
    model, inputs = subject("small-qwen2.5-vl")
    found = timed(model, inputs, None, 4)
    assert set(found) == {"tower", "prefill", "first", "decode", "total"}
    assert all(seconds > 0 for seconds in found.values())
    assert found["tower"] + found["prefill"] < found["first"] < found["total"]
    assert found["first"] + 3 * found["decode"] <= found["total"]


def test_what_calls_before_left_in_cycles_is_gone() -> None:
    """Else it would be given back in the middle, and the peak above what was held too small."""
    model, inputs = subject("small-qwen2.5-vl")
    knot: list[Any] = [torch.empty(10)]
    knot.append(knot)
    left, seen = weakref.ref(knot[0]), []
    watch = model.register_forward_pre_hook(lambda *_: seen.append(left()))
    gc.disable()
    try:
        del knot
        timed(model, inputs, None, 1)
    finally:
        gc.enable()
        watch.remove()
    assert seen == [None]


def test_events_are_recorded_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another than the current device, the current stream has nothing to do, and its events tell nothing."""
    recorded = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any = None) -> None:
            recorded.append(stream)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    tick(torch.device("cuda:1"))
    assert recorded == ["stream of cuda:1"]


def test_a_single_token_has_no_decoding() -> None:
    model, inputs = subject("small-qwen2.5-vl")
    found = timed(model, inputs, Stride(), 1)
    assert set(found) == {"tower", "prefill", "first", "total"}
    assert found["first"] <= found["total"]


CASES = [(name, Stride(keep=0.5)) for name in SMALL] + [("small-qwen2.5-vl", method) for method in METHODS]


@pytest.mark.parametrize(("name", "method"), CASES, ids=lambda each: str(each).partition("(")[0])
def test_counted_flops_are_those_of_the_formula(name: str, method: Method) -> None:
    model, inputs = subject(name)
    found = probe(model, inputs, method, 2)
    assert found["counted"] == pytest.approx(sum(found["flops"].values()), rel=1e-3)
    assert stock(name)["counted"] == pytest.approx(sum(found["full_flops"].values()), rel=1e-3)


@cache
def stock(name: str) -> dict[str, Any]:
    model, inputs = subject(name)
    return probe(model, inputs, None, 2)


def test_fewer_tokens_need_less() -> None:
    model, inputs = subject("small-llava")
    dense, found = stock("small-llava"), probe(model, inputs, Stride(keep=0.25), 2)
    assert "flops" not in dense
    assert found["tokens"] == 144
    text = inputs["input_ids"].shape[1] - 576
    assert found["kv"] / dense["kv"] == (144 + text + 1) / (576 + text + 1)
    assert dense["kv"] < dense["peak"]
    assert 0.2 < found["peak"] / dense["peak"] < 0.8


def test_the_peak_is_the_same_every_time() -> None:
    model, inputs = subject("small-llava")
    assert probe(model, inputs, None, 2)["peak"] == stock("small-llava")["peak"]


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_attention_is_counted_whichever_kernel_does_it(impl: str) -> None:
    model = shapes.build(shapes.qwen2_5_small(64, 2, blocks=2), torch.float32, torch.device("cpu"), impl, 0)
    prompts = Shaped(model.config)
    inputs = prompts.inputs(prompts.layout(36), 1, 0)
    found = probe(model, inputs, Stride(), 2)
    assert found["counted"] == pytest.approx(sum(found["flops"].values()), rel=1e-2)


@pytest.mark.parametrize("family", tiny.STRUCTURES)
def test_any_family_can_be_measured(family: str) -> None:
    model, inputs = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    before = state_of(model)
    found, times = probe(model, inputs, Stride(), 2), timed(model, inputs, Stride(), 2)
    assert found["counted"] == pytest.approx(sum(found["flops"].values()), rel=0.05)
    assert times["tower"] > 0
    assert times["prefill"] > 0
    assert state_of(model) == before
    compress(model, Stride()).remove()


def test_clocks_come_off_after_an_error() -> None:
    model, inputs = subject("small-qwen2.5-vl")
    before = state_of(model)
    with pytest.raises(ValueError, match="out of place"):
        timed(model, inputs, Fails(), 2)
    assert state_of(model) == before


@dataclass(frozen=True)
class Fails(Method):
    """Raises in the middle of a forward."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("decoder", 1)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        raise ValueError("out of place")
