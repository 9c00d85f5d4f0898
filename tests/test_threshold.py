"""Thresholds: a score decides who stays, and each image says how many these are."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny
import torch
from contract import CORE, Property
from probes.threshold import Attended, Unlike

import foveate
from foveate import IPCV, DyCoke, FastV, Host, Method, Tokens
from foveate.dial import with_threshold
from foveate.errors import ConfigError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.serving.plan import make_plan

HOST = Host("llava", blocks=23, layers=32, has_cls=True)
ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]
PAIR = pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])


@PAIR
@pytest.mark.parametrize("check", CORE)
@pytest.mark.parametrize("method", [Unlike(threshold=-0.1), Attended()], ids=["entry", "decoder"])
def test_a_threshold_keeps_the_contract(method: Method, check: Property, family: str) -> None:
    check(family, method)


@PAIR
def test_those_that_reach_it_stay_and_the_best_in_any_case(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    seen: list[tuple[list[float], tuple[int, ...]]] = []

    class Noted(Unlike):
        def score(self, tokens: Tokens, site: Any) -> torch.Tensor:
            score = super().score(tokens, site)
            seen.append((score.tolist(), tokens.counts))
            return score

    for threshold in (-0.2, 0.0, 0.1, 5.0):
        with foveate.compress(model, Noted(threshold=threshold)) as handle, torch.no_grad():
            model(**batch)
            (visit,) = handle.report().visits
        scores, counts = seen.pop()
        start, expected = 0, []
        for n in counts:
            own = scores[start : start + n]
            expected.append(tuple(i for i, score in enumerate(own) if score >= threshold) or (own.index(max(own)),))
            start += n
        assert visit.kept == tuple(expected)


def test_unset_is_the_threshold_of_the_paper_until_a_count_is_given() -> None:
    assert Attended().cut == 0.0
    assert Attended(threshold=1.5).cut == 1.5
    assert not Attended().has_fixed_budget
    for method in (
        Attended(keep=0.5),
        Attended(ratio=0.5),
        Attended().with_keep(0.4),
        Attended(threshold=2.0).with_keep(0.4),
    ):
        assert method.cut is None
        assert method.has_fixed_budget
    assert [site.keep for site in Attended(layers=(3,)).sites(HOST)] == [1.0]
    assert Attended(keep=0.5).mean(HOST) == pytest.approx(0.5)
    assert Unlike().cut is None
    assert Unlike(threshold=0.3).sites(HOST)[0].keep == 1.0
    assert DyCoke().cut is None, "its threshold is of something else"
    assert foveate.method_from_dict(FastV().to_dict()) == FastV()


def test_a_threshold_that_contradicts_something() -> None:
    with pytest.raises(ConfigError, match=r"keep=0.5 and threshold=0.1 both say how much"):
        Attended(keep=0.5, threshold=0.1)
    with pytest.raises(ConfigError, match=r"ratio=0.5 and threshold=0.1 both say how much"):
        Attended(ratio=0.5, threshold=0.1)
    with pytest.raises(ConfigError, match="attended: how many tokens reach a threshold depends on the image"):
        Attended().mean(HOST)
    with pytest.raises(ConfigError, match="a threshold decides in attended: give each part its own"):
        (Attended() + FastV()).with_keep(0.3).sites(HOST)
    assert (Attended() + FastV(keep=0.3)).sites(HOST)
    model = tiny.model("llava")
    with pytest.raises(ConfigError, match="attended decides by the content of an image"):
        make_plan(Attended(), host_of(model), family_of(model.config), model.config)


@pytest.mark.parametrize(
    ("method", "family"), [(Unlike(), "llava"), (Attended(), "qwen2_5_vl"), (Unlike(keep=0.2), "qwen2_5_vl")], ids=repr
)
def test_a_threshold_for_a_mean(family: str, method: Method) -> None:
    model = tiny.model(family)
    inputs = [tiny.inputs(family, ROWS), tiny.inputs(family, [[3, "image", 5]])]
    for keep in (0.4, 0.7):
        found = with_threshold(method, model, inputs, keep, tolerance=0.0)
        assert found.keep is None
        assert found.cut is not None
        shares = []
        with foveate.compress(model, found) as handle, torch.no_grad():
            for each in inputs:
                model(**each)
                shares.append(handle.report().shares["tokens"])
        one = 1 / int(tiny.visual_mask(family, inputs[1]).sum())  # token of the smallest prompt
        assert sum(shares) / 2 == pytest.approx(keep, abs=one)


def test_no_threshold_to_set() -> None:
    model, inputs = tiny.model("llava"), [tiny.inputs("llava", ROWS)]
    with pytest.raises(ConfigError, match="ipcv has no threshold to set: its options are positions, keep"):
        with_threshold(IPCV(), model, inputs, 0.5)
    with pytest.raises(ConfigError, match="at least one prompt"):
        with_threshold(Unlike(), model, [], 0.5)
    with pytest.raises(ConfigError, match=r"keep=2.0 is not a ratio"):
        with_threshold(Unlike(), model, inputs, 2.0)


def test_inputs_are_a_list_of_prompts() -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    with pytest.raises(ConfigError, match=r"inputs are of a single prompt: give a list, \[inputs\]"):
        with_threshold(Unlike(), model, batch, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="inputs has a str: expected the arguments of the model"):
        with_threshold(Unlike(), model, ["what ?"], 0.5)  # type: ignore[list-item]


def test_a_share_that_no_threshold_leaves_is_said() -> None:
    """Before layer 1 all tokens are there, so a little cannot be left on average."""
    model, inputs = tiny.model("llava"), [tiny.inputs("llava", ROWS)]
    with pytest.warns(
        UserWarning, match="no threshold of attended leaves keep=0.05 of these prompts: 0.1.* is the nearest"
    ):
        found = with_threshold(Attended(), model, inputs, 0.05)
    assert found.cut is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_threshold(Attended(), model, inputs, 0.5)
