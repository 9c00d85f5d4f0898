"""What an author gets wrong is said in a sentence: scores, reductions and sites that do not fit; foreign caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny
import torch

import foveate
from foveate import Host, Method, Reduction, Site, Tokens
from foveate.errors import ConfigError, UnsupportedCacheError


@dataclass(frozen=True)
class Wrong(Method):
    """Whatever the test says."""

    answer: ClassVar[Callable[[Tokens], Any]]
    places: ClassVar[Any] = [Site("decoder", 1, 0.5)]

    def sites(self, host: Host) -> Any:
        return type(self).places

    def score(self, tokens: Tokens, site: Site) -> Any:
        return type(self).answer(tokens)


def attach(answer: Callable[[Tokens], Any], base: type[Method] = Wrong, places: Any = None) -> Method:
    body = {"answer": staticmethod(answer), "places": [Site("decoder", 1, 0.5)] if places is None else places}
    return type("Mine", (base,), body)()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda t: t.hidden.norm(dim=-1)[:-1], r"Mine.score at decoder 1 returned shape \(31,\), expected \(32,\)"),
        (lambda t: t.hidden, r"returned shape \(32, 64\), expected"),
        (lambda t: None, "returned NoneType, expected"),
        (lambda t: [0.0] * len(t), "returned list, expected"),
    ],
)
def test_scores_that_do_not_fit(answer: Callable[[Tokens], Any], sentence: str) -> None:
    model, batch = tiny.model("qwen2_vl"), tiny.inputs("qwen2_vl", [[3, (8, 8), 4, (8, 8)]])
    with foveate.compress(model, attach(answer)), pytest.raises(ConfigError, match=sentence):
        model(**batch)


class Deciding(Wrong):
    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return type(self).answer(tokens)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda t: torch.arange(3), "returned Tensor, expected a Reduction"),
        (lambda t: Reduction(torch.arange(3), (3,)), "for 2 spans do not match"),
        (lambda t: Reduction(torch.arange(3), (3, 1)), "do not match"),
        (lambda t: Reduction(torch.arange(4.0), (3, 1)), "expected int64"),
        (lambda t: Reduction(torch.arange(4), (3, 1), hidden=t.hidden), "32 new hidden states for 4 survivors"),
    ],
)
def test_reductions_that_do_not_fit(answer: Callable[[Tokens], Any], sentence: str) -> None:
    model, batch = tiny.model("qwen2_vl"), tiny.inputs("qwen2_vl", [[3, (8, 8), 4, (8, 8)]])
    with foveate.compress(model, attach(answer, Deciding)), pytest.raises(ConfigError, match=sentence):
        model(**batch)


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
    if family in tiny.gemma.SLIDING:
        pytest.skip("sliding layers have no decode sites")
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 4]])
    with torch.no_grad(), foveate.compress(model, foveate.DyCoke(keep=0.5)) as handle:
        model.generate(**batch, max_new_tokens=4, do_sample=False)
        visits = handle.report().visits
    n = int(tiny.visual_mask(family, batch).sum())
    assert [(visit.site, sum(visit.before), sum(visit.after)) for visit in visits] == [("decode 3", n, (n + 1) // 2)]
