"""The run: interleaved, whole after every round, and going on where it stopped."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.errors import FoveateError
from foveate.lab.bench import memory, shapes, sweep
from foveate.lab.bench import result as results
from foveate.lab.bench.measure import timed
from foveate.lab.bench.plan import DEFAULT, contenders, label
from foveate.lab.bench.request import Request
from foveate.lab.bench.sweep import _turned, command, run
from foveate.lab.terminal import CommandError
from foveate.methods import make
from foveate.sums import Composed

Told = list[tuple[str, float]]


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Request]:
    """Two sizes, a method at two shares, a single round; the default shape is smaller than it is."""
    tiny = shapes.Shape(lambda: shapes.qwen2_5_small(64, 3, tower=64, blocks=4), "tests")
    monkeypatch.setitem(shapes.SHAPES, "small-qwen2.5-vl", tiny)
    shapes.skeleton.cache_clear()
    yield Request(
        tmp_path / "bench.json",
        methods=("stride",),
        keeps=(0.25, 0.5),
        tokens=(4, 16),
        repeats=1,
        new_tokens=2,
        steps=2,
    )
    shapes.skeleton.cache_clear()


def measure(request: Request, stop: str = "") -> tuple[results.Result, Told]:
    """Run; or be interrupted as soon as something with these words is about to happen."""
    told: Told = []

    def tell(what: str, done: float) -> None:
        if stop and stop in what:
            raise KeyboardInterrupt
        told.append((what, done))

    return run(request, tell), told


def test_a_run(request_: Request) -> None:
    found, told = measure(request_)
    assert [case.key for case in found.cases] == [("small-qwen2.5-vl", 4, 1), ("small-qwen2.5-vl", 16, 1)]
    for case in found.cases:
        assert list(case.lines) == ["dense", "stride(keep=0.25)", "stride(keep=0.5)"]
        assert case.rounds == 1
        assert (case.dtype, case.attn, case.text) == ("float32", "sdpa", 34)
        tokens = [line.probe["tokens"] for line in list(case.lines.values())[1:] if line.probe]
        assert tokens == [case.tokens / 4, case.tokens / 2]
        assert [len(line.steps) for line in case.lines.values()] == [0, 2, 2]
    assert results.read(request_.out) == found
    shares = [done for _, done in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    settings = found.settings
    assert settings["threads"] == torch.get_num_threads()
    assert settings["versions"]["torch"] == torch.__version__
    assert settings["cpu"]
    assert list(request_.out.parent.iterdir()) == [request_.out]


def test_every_round_runs_everything_in_another_order() -> None:
    order = ["dense", "a", "b", "c"]
    rounds = [_turned(order, number) for number in range(8)]
    assert all(sorted(each) == sorted(order) for each in rounds)
    assert {each[0] for each in rounds} == set(order)
    neighbours = [(a, b) for each in rounds for a, b in zip(each, each[1:])]
    assert {("dense", "a"), ("a", "dense")} <= set(neighbours), "nothing always follows the same"
    assert [each[0] for each in rounds] == 2 * order


def test_what_is_told_is_what_runs(request_: Request) -> None:
    request = replace(request_, tokens=(4,), repeats=3)
    _, told = measure(request)
    rounds = [[what.split(", ")[-1] for what, _ in told if f"round {number} of 3" in what] for number in (1, 2, 3)]
    assert all(len(each) == 3 for each in rounds)
    assert len({tuple(each) for each in rounds}) == 3


def test_a_finished_run_is_kept_and_may_get_longer(request_: Request) -> None:
    first, _ = measure(request_)
    written = request_.out.stat()
    again, told = measure(request_)
    assert again == first
    assert told == [], "it returns at once: no model is made, and nothing is measured twice"
    assert request_.out.stat() == written
    more, _ = measure(replace(request_, tokens=(16, 36), repeats=2))
    assert [(case.tokens, case.rounds) for case in more.cases] == [(4, 1), (16, 2), (36, 2)]
    assert more.cases[0] == first.cases[0]
    for name, line in more.cases[1].lines.items():
        assert line.repeats[:1] == first.cases[1].lines[name].repeats
        assert line.probe == first.cases[1].lines[name].probe


@pytest.mark.parametrize("stop", ["16 visual tokens, batch 1: looking at stride", "16 visual tokens, batch 1: round 2"])
def test_an_interrupted_run_loses_nothing_that_was_done(request_: Request, stop: str) -> None:
    request = replace(request_, repeats=2)
    with pytest.raises(KeyboardInterrupt):
        measure(request, stop)
    there = results.read(request.out)
    assert there.cases[0].rounds == 2
    finished = 1 if "round" in stop else 0
    assert sum(case.rounds for case in there.cases[1:]) == finished
    whole, _ = measure(request)
    assert whole.cases[0] == there.cases[0]
    assert [case.rounds for case in whole.cases] == [2, 2]
    if finished:
        assert all(
            line.repeats[0] == there.cases[1].lines[name].repeats[0] for name, line in whole.cases[1].lines.items()
        )
    assert list(request.out.parent.iterdir()) == [request.out]


def test_a_round_that_there_is_no_memory_for(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before stays, the others go on, and nothing of the failed call is held."""
    calls, held = 0, []

    def fails(model: Any, inputs: Any, method: Any, new_tokens: int) -> dict[str, float]:
        nonlocal calls
        if method is not None and method.keep == 0.25:
            calls += 1
            if calls == 3:  # warming up was the first
                own = torch.empty(10)
                held.append(weakref.ref(own))
                raise torch.OutOfMemoryError("CUDA out of memory")
        return timed(model, inputs, method, new_tokens)

    def give_back(device: torch.device) -> None:
        assert [each() for each in held] == [None]
        held.clear()

    monkeypatch.setattr(sweep, "timed", fails)
    monkeypatch.setattr(memory, "give_back", give_back)
    request = replace(request_, tokens=(4,), repeats=3)
    found, _ = measure(request)
    lines = found.cases[0].lines
    assert held == []
    assert [len(line.repeats) for line in lines.values()] == [3, 1, 3]
    assert [line.error for line in lines.values()] == [None, "out of memory", None]
    assert measure(request)[0] == results.read(request.out) == found


def test_a_model_that_there_is_no_memory_for(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*words: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(shapes, "build", build)
    with pytest.raises(CommandError, match=r"small-qwen2\.5-vl does not fit into the memory that is free"):
        measure(request_)


OTHER: list[tuple[dict[str, Any], str]] = [
    ({"methods": ("random",)}, r'methods was \["stride"\], and now is \["random"\]'),
    ({"keeps": (0.75,)}, r"methods was dense, stride\(keep=0.25\), .* and now is dense, stride\(keep=0.75\)"),
    ({"seed": 1}, "seed was 0, and now is 1"),
    ({"new_tokens": 3}, "new_tokens was 2, and now is 3"),
    ({"dtype": "bfloat16"}, 'dtype was "auto", and now is "bfloat16"'),
    ({"attn": "eager"}, 'attn was null, and now is "eager"'),
]


def test_another_run_does_not_go_on(request_: Request) -> None:
    measure(replace(request_, tokens=(4,)))
    before = request_.out.read_bytes()
    for change, sentence in OTHER:
        with pytest.raises(CommandError, match=f"is of another run, whose {sentence}.*give --out another name"):
            measure(replace(request_, **change))
        assert request_.out.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[1]", "not JSON", '{"schema": 99}', '{"schema": 1, "cases": [{}]}'])
def test_a_file_of_something_else_is_left_alone(request_: Request, content: str) -> None:
    request_.out.write_text(content)
    with pytest.raises(CommandError, match="is not a"):
        measure(request_)
    assert request_.out.read_text() == content


def test_the_command_repeats_the_run(request_: Request) -> None:
    request = replace(request_, shapes=("small-llava",), options=("layers=2",), device="cpu", attn="eager")
    request = replace(request, plot=Path("bench.png"))
    assert command(request) == (
        "foveate bench --tokens 4 --tokens 16 --new-tokens 2 --steps 2 --repeats 1 --method stride --keep 0.25 --keep 0.5 "
        "--option layers=2 --shape small-llava --device cpu --attn eager"
    )


def test_a_method_that_does_not_fit_is_found_before_anything_runs(request_: Request) -> None:
    with pytest.raises(FoveateError, match="no decoder layer 40"):
        measure(replace(request_, shapes=("small-llava", "qwen2.5-vl-7b"), options=("layers=40",)))
    assert not request_.out.exists()


def test_methods(tmp_path: Path) -> None:
    request = Request(tmp_path / "x.json")
    assert [name.partition("(")[0] for name in contenders(request)] == ["dense", *DEFAULT]
    described = json.dumps(make("tome+fastv").to_dict())
    found = contenders(replace(request, methods=("stride", "vtw"), options=("vtw.layer=3",), described=(described,)))
    assert list(found) == ["dense", "stride", "vtw(layer=3)", "tome+fastv"]
    assert isinstance(found["tome+fastv"], Composed)
    with pytest.raises(CommandError, match="would be measured twice"):
        contenders(replace(request, methods=("stride",), described=(json.dumps(make("stride").to_dict()),)))


def test_labels() -> None:
    assert label(make("adsc")) == "adsc"
    assert label(make("adsc", keep=1 / 3)) == "adsc(keep=0.3333)"
    assert label(make("stride", layers=[1, 2], positions="renumber")) == "stride(positions=renumber, layers=(1, 2))"
