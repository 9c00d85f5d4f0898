"""What decisions cost, and how everything grows: every method is asked alone, and exponents are what they are said to be."""

from __future__ import annotations

import math
import time

import pytest
import torch

import foveate

import growth
from gpu.answers import answers
from selector_cost import Model, Noise, Walk, chosen
from tables import growth as tables


@pytest.fixture(scope="module")
def model() -> Model:
    return Model("small-qwen2.5-vl")


@pytest.fixture(scope="module")
def noise(model: Model) -> Noise:
    return Noise(600 * model.widest)


def test_every_method_is_asked_at_all_of_its_sites(model: Model, noise: Noise) -> None:
    """Those of the registry, and one for each kind of answer."""
    spans = growth.spans_of([[(1, 12, 12), (1, 4, 4)], [(3, 6, 6)]])
    with torch.inference_mode():
        for name, method in [*chosen([]), *answers().items()]:
            seconds = Walk(model, method, spans, noise).run()
            silent = ("decode", "reuse")
            asked = [site for site in method.sites(model.host) if not {site.at, site.action} & {*silent}]
            assert len(seconds) == len({str(site) for site in asked}), name
            assert all(value > 0 for value in seconds.values())


def test_a_walk_has_the_tokens_that_a_call_has(model: Model, noise: Noise) -> None:
    method = foveate.LUVC() + foveate.FastV(layer=2)
    walk = Walk(model, method, growth.spans_of([[(1, 16, 16)]]), noise)
    with torch.inference_mode():
        walk.run()
    batch = growth.prompt(growth.small(layers=8), [[(1, 16, 16)]])
    vlm = growth.shapes.build(growth.shapes.config_of("small-qwen2.5-vl"), torch.float32, growth.CPU, None, 0)
    with torch.inference_mode(), foveate.compress(vlm, method) as handle:
        vlm(**batch)
        visits = handle.report().visits
    assert list(walk.seconds) == [f"{visit.method} at {visit.site}" for visit in visits]
    assert walk.left == [sum(visit.after) for visit in visits]


def test_exponents() -> None:
    sizes = {n: {"seconds": 1e-3 * n**1.5, "bytes": 0.0} for n in (4, 16, 64, 256)}
    found = growth.exponent(sizes, "seconds")
    assert found is not None
    assert found["slope"] == pytest.approx(1.5)
    assert found["last"] == pytest.approx(1.5)
    assert math.dist(found["interval"], (1.5, 1.5)) < 1e-6
    assert growth.exponent(sizes, "bytes") is None, "nothing that could grow"


def test_what_there_is_no_time_for_is_left_out() -> None:
    measured = growth.Measured(time.monotonic() - 1)
    measured.add("tome", 4, [], lambda: lambda: None)
    assert measured.left_out == ["tome at 4"]
    assert not measured.found


def test_what_grows_faster_is_named() -> None:
    def part(time: float, memory: float, seconds: float) -> dict[str, object]:
        stock, mine = {"seconds": 1.0, "bytes": 1e9}, {"seconds": seconds, "bytes": 1e9}
        return {
            "time": {"attention": {"last": 1.9}, "mine": {"last": time}},
            "memory": {"attention": {"last": 1.0}, "mine": {"last": memory}},
            "sizes": {"attention": {1: stock}, "mine": {1: mine}},
        }

    axes = {"visual tokens": {"decisions": part(2.4, 1.0, 0.1)}, "images": {"decisions": part(3.0, 2.0, 1e-5)}}
    said = "time of `mine` with visual tokens, 2.40 against 1.90; memory of `mine` with images, 2.00 against 1.00"
    assert tables.faster_decisions({"axes": axes}) == said


def test_a_video_has_frames_and_a_model_of_tiles_has_none() -> None:
    clip = Model("small-qwen2.5-vl").clip(1024)
    assert clip is not None
    assert (sum(clip.sizes), max(clip.frame) + 1, {*clip.clip}) == (1024, 16, {0})
    assert Model("llava-1.5-7b").clip(1024) is None
