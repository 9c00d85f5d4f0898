"""What an author gets wrong is said in a sentence: scores, reductions and sites that do not fit; foreign caches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny
import torch
from refusals import At

import foveate
from foveate import Host, Method, Reduction, Site, Tokens
from foveate.errors import ConfigError, UnsupportedCacheError
from foveate.serving.plan import make_plan


@dataclass(frozen=True)
class Wrong(Method):
    """Whatever the test says."""

    says: ClassVar[Callable[[Tokens], Any]]
    places: ClassVar[Any] = [Site("decoder", 1, 0.5)]

    def sites(self, host: Host) -> Any:
        return type(self).places

    def score(self, tokens: Tokens, site: Site) -> Any:
        return type(self).says(tokens)


def attach(answer: Callable[[Tokens], Any], base: type[Method] = Wrong, places: Any = None) -> Method:
    body = {"says": staticmethod(answer), "places": [Site("decoder", 1, 0.5)] if places is None else places}
    return type("Mine", (base,), body)()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda t: t.hidden.norm(dim=-1)[:-1], r"Mine.score at decoder 1 returned shape \(31,\), expected \(32,\)"),
        (lambda t: t.hidden, r"returned shape \(32, 64\), expected"),
        (lambda t: None, "returned NoneType, expected"),
        (lambda t: [0.0] * len(t), "returned list, expected"),
        (
            lambda t: t.hidden[:, 0] / 0 * 0,
            "Mine.score at decoder 1 returned NaN for 32 of 32 tokens, expected numbers",
        ),
    ],
)
def test_scores_that_do_not_fit(answer: Callable[[Tokens], Any], sentence: str) -> None:
    model, batch = tiny.model("qwen2_vl"), tiny.inputs("qwen2_vl", [[3, (8, 8), 4, (8, 8)]])
    with foveate.compress(model, attach(answer)), pytest.raises(ConfigError, match=sentence):
        model(**batch)


class Deciding(Wrong):
    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return type(self).says(tokens)


def two(**values: Any) -> Callable[[Tokens], Reduction]:
    """The first token of each of the two images, with new ``values``."""
    return lambda t: Reduction(torch.tensor([0, t.counts[0]]), (1, 1), **values)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda t: torch.arange(3), "returned Tensor, expected a Reduction"),
        (lambda t: Reduction(torch.arange(3), (3,)), "for 2 spans do not match"),
        (lambda t: Reduction(torch.arange(3), (3, 1)), "do not match"),
        (lambda t: Reduction(torch.arange(4.0), (3, 1)), "expected int64"),
        (
            lambda t: Reduction(torch.arange(4), [3, 1]),  # type: ignore[arg-type]
            r"counts=\[3, 1\], expected a tuple",
        ),
        (lambda t: Reduction(torch.arange(4), (5, -1)), r"counts \(5, -1\), expected 0 to \(16, 16\)"),
        (lambda t: Reduction(torch.arange(17), (17, 0)), r"counts \(17, 0\), expected 0 to \(16, 16\)"),
        (two(hidden=torch.ones(32, 64)), r"hidden is float32 \(32, 64\), expected floats \(2, 64\)"),
        (two(sizes=torch.ones(3)), r"sizes is float32 \(3,\), expected floats \(2,\)"),
        (two(sizes=torch.ones(2).long()), r"sizes is int64 \(2,\), expected floats"),
        (two(coords=torch.ones(2, 2)), r"coords is float32 \(2, 2\), expected floats \(2, 3\)"),
        (two(shape=((1, 1), (1, 1))), "images get one at a pixels site only"),
        (two(groups=torch.zeros(32)), r"groups is float32 \(32,\), expected a function"),
        (two(groups=lambda: torch.zeros(31).long()), r"groups gives int64 \(31,\), expected int64 \(32,\)"),
        (two(groups=lambda: torch.full((32,), 3)), "groups has 3, 3, 3 ..., expected 0 to 1, or 2 for a token in none"),
        (
            lambda t: Reduction(torch.tensor([0, 32]), (1, 1)),
            "decoder 1: keep has 32, expected indices from 0 to 31",
        ),
        (lambda t: Reduction(torch.tensor([-1, 16]), (1, 1)), "keep has -1, expected indices from 0 to 31"),
        (
            lambda t: Reduction(torch.tensor([16, 0]), (1, 1)),
            "Mine.reduce at decoder 1: keep goes from 16 to 0, expected each token once, ascending",
        ),
        (lambda t: Reduction(torch.tensor([3, 3]), (1, 1)), "keep goes from 3 to 3"),
        (
            lambda t: Reduction(torch.tensor([0, 1]), (1, 1)),
            r"counts \(1, 1\), but keep has \(2, 0\) tokens of the spans",
        ),
    ],
)
def test_reductions_that_do_not_fit(answer: Callable[[Tokens], Any], sentence: str) -> None:
    model, batch = tiny.model("qwen2_vl"), tiny.inputs("qwen2_vl", [[3, (8, 8), 4, (8, 8)]])
    with foveate.compress(model, attach(answer, Deciding)), pytest.raises(ConfigError, match=sentence):
        model(**batch)


@pytest.mark.parametrize(
    ("shape", "counts", "sentence"),
    [
        (None, (16, 16), "shape=None, expected a .height, width. for every span"),
        (((4, 4), (2, 2)), (16, 16), "of as many tokens as counts says"),
        (((4, 4),), (16, 16), "for every span"),
    ],
)
def test_grids_that_do_not_fit(shape: Any, counts: tuple[int, ...], sentence: str) -> None:
    model, batch = tiny.model("qwen2_vl"), tiny.inputs("qwen2_vl", [[3, (8, 8), 4, (8, 8)]])
    method = attach(lambda t: Reduction(torch.arange(32), counts, shape=shape), Deciding, [Site("pixels")])
    with foveate.compress(model, method), pytest.raises(ConfigError, match=sentence):
        model(**batch)


def test_a_cost_that_is_no_number() -> None:
    class Costly(Deciding):
        def flops(self, tokens: Tokens, site: Site) -> Any:
            return 0.5

    model, batch = tiny.model("qwen2_vl"), tiny.inputs("qwen2_vl", [[3, (8, 8), 4, (8, 8)]])
    with (
        foveate.compress(model, attach(two(), Costly)),
        pytest.raises(ConfigError, match=r"flops at decoder 1 returned 0.5"),
    ):
        model(**batch)


def test_a_plan_is_checked_as_a_call_is() -> None:
    """An engine asks the method about made-up tokens."""
    family = foveate.list_families()["qwen2_vl"]
    method = attach(lambda t: Reduction(torch.tensor([0, 0]), (2,)), Deciding)
    with pytest.raises(ConfigError, match=r"Mine.reduce at decoder 1: keep goes from 0 to 0"):
        make_plan(method, Host("qwen2_vl", 4, 6, False), family, tiny.config("qwen2_vl"))


@pytest.mark.parametrize("places", [[], Site("decoder", 1), None, ["decoder"]])
def test_sites_that_are_none(places: Any) -> None:
    method = attach(lambda t: t.hidden[:, 0], places=() if places is None else places)
    with pytest.raises(ConfigError, match="expected a list of at least one Site"):
        foveate.compress(tiny.model("llava"), method)


def test_a_cache_that_outlives_its_handle(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 4]])
    step: dict[str, Any] = {"input_ids": batch["input_ids"][:, -1:]}
    if family in tiny.PACKED:
        step["position_ids"] = torch.full((3, 1, 1), 40)
    with torch.no_grad():
        with foveate.compress(model, foveate.Stride()):
            cache = model(**batch).past_key_values
        with pytest.raises(UnsupportedCacheError, match="filled under a foveate handle"):
            model(**step, past_key_values=cache)


def test_decode_sites_are_in_the_report(family: str) -> None:
    if tiny.slides(family):
        pytest.skip("sliding layers have no decode sites")
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 4]])
    with torch.no_grad(), foveate.compress(model, foveate.DyCoke(ratio=1.0, decode_ratio=0.5)) as handle:
        model.generate(**batch, max_new_tokens=4, do_sample=False)
        visits = handle.report().visits
    n = int(tiny.visual_mask(family, batch).sum())
    assert [(visit.site, sum(visit.before), sum(visit.after)) for visit in visits] == [("decode 3", n, (n + 1) // 2)]


def test_an_error_of_the_author_says_where_it_was_raised() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", [[3, "image"]])
    method = At(places=(Site("decoder", 2),), error="RuntimeError")
    with foveate.compress(model, method), pytest.raises(RuntimeError, match="raised by the method") as raised:
        model(**batch)
    if sys.version_info >= (3, 11):
        assert raised.value.__notes__ == ["(raised by At.reduce at decoder 2)"]
