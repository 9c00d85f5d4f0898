"""The searches alone: real methods with made-up objectives, so that what is best is known."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Literal

import pytest

from foveate import (
    ADSC,
    IPCV,
    LUVC,
    SPU,
    VTW,
    DivPrune,
    FastV,
    Host,
    Method,
    QCache,
    Random,
    RedundancyLens,
    ToMe,
    V2Drop,
    compress,
)
from foveate.dial import TOLERANCE, Dial
from foveate.errors import ConfigError, FoveateError
from foveate.lab.asker import Asker, Cost
from foveate.lab.evaluation.tune.request import Tune
from foveate.lab.evaluation.tune.search import (
    along_sigmoids,
    along_the_dial,
    among_options,
    by_withdrawal,
    greedy,
    moves,
    ranked,
    takes_layers,
    takes_schedule,
)
from foveate.lab.evaluation.tune.trials import Trial
from foveate.lab.evaluation.tune.tuning import _best
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError
from foveate.schedule import Schedule, sigmoid

HOST = Host(family="llava", blocks=4, layers=12, has_cls=True)


def anything(method: Method) -> bool:
    return True


def shares(method: Method, layers: int = HOST.layers) -> list[float]:
    """Share of all visual tokens in each decoder layer."""
    return method.shares(HOST).curve(layers)


class Judge:
    """Each layer's missing tokens have a weight."""

    def __init__(self, weights: list[float]) -> None:
        self.weights = weights
        self.judged: dict[Method, float] = {}

    def __call__(self, method: Method) -> float:
        kl = sum(weight * (1 - share) for weight, share in zip(self.weights, shares(method)))
        self.judged[method] = kl
        return kl


def test_vtw_is_tried_from_the_cheap_end() -> None:
    judge = Judge([0.1] * 12)
    along_the_dial(VTW(), HOST, anything, judge, 0.45)
    layers = [method.sites(HOST)[0].layer for method in judge.judged]
    assert layers == list(range(9)), "the first that is good enough is the last tried"
    assert list(judge.judged.values())[-1] == pytest.approx(0.4)


def test_vtw_is_withdrawn_from_layer_5_on() -> None:
    """Whatever layer or share was given, up to the first layer that is good enough; a model of fewer layers has none."""
    for given in (VTW(), VTW(layer=2), VTW(keep=0.3)):
        judge = Judge([0.1] * 12)
        by_withdrawal(given, HOST, anything, judge, 0.45)
        assert list(judge.judged) == [VTW(layer=layer) for layer in (5, 6, 7, 8)]
    with pytest.raises(CommandError, match="begins at layer 5, counted from 0, and the model has 5 layers"):
        by_withdrawal(VTW(), replace(HOST, layers=5), anything, judge, 0.45)


def test_layers_are_added_in_the_order_in_which_they_hurt() -> None:
    """Alone and together; layers where the method cannot act are left out, and other options stay as they are."""
    hurts = {1: 0.5, 2: 0.1, 3: 9.0, 4: 0.2, 5: 0.1}
    judged: list[tuple[int, ...]] = []

    def judge(method: Method) -> float:
        judged.append(method.layers)  # type: ignore[attr-defined]
        return sum(hurts[layer] for layer in method.layers)  # type: ignore[attr-defined]

    def fits(method: Method) -> bool:
        return 0 not in method.layers  # type: ignore[attr-defined]

    host = Host("llava", blocks=4, layers=6, has_cls=True)
    for method in (QCache(keep=0.8), RedundancyLens(ratio=0.3, hollow_layers=())):
        judged.clear()
        ranked(method, host, fits, judge, most=0.45)
        best = [layers for layers in judged if sum(hurts[layer] for layer in layers) <= 0.45]
        assert max(best, key=len) == (2, 4, 5)
        assert judged[:5] == [(1,), (2,), (3,), (4,), (5,)]
        assert judged[5:9] == [(1, 2), (2, 3), (2, 4), (2, 5)]
        assert len(judged) == 5 + 4 + 3 + 2
    assert [takes_layers(each) for each in (QCache(), RedundancyLens(), FastV(), IPCV())] == [
        "layers",
        "layers",
        None,
        None,
    ]


def test_layers_of_hollow_attention_have_a_ranking_of_their_own() -> None:
    """That of FFNs has no part in it: where they are whole, the layers of the mask are ranked."""
    hurts = [0.4, 0.1, 0.2, 0.9]
    judged: list[RedundancyLens] = []

    def judge(method: Method) -> float:
        assert isinstance(method, RedundancyLens)
        judged.append(method)
        return sum(hurts[layer] for layer in method.hollow_layers or ())

    given = method_from_words("redundancylens", None, ["layers=[]", "hollow_layers=[3]", "window=5"], None)
    ranked(given, Host("llava", blocks=4, layers=4, has_cls=True), anything, judge, most=0.5)
    assert {(each.layers, each.window) for each in judged} == {((), 5)}
    tried = [each.hollow_layers for each in judged]
    assert tried[:4] == [(0,), (1,), (2,), (3,)]
    assert tried[4:7] == [(0, 1), (1, 2), (1, 3)]
    assert tried[7:] == [(0, 1, 2), (1, 2, 3)]
    cost = Cost(**{each.name: 1.0 for each in fields(Cost)})
    trials = [Trial(json.dumps(each.to_dict()), judge(each), cost) for each in (given, *judged)]
    request = Tune(described=json.dumps(given.to_dict()), max_kl=0.5, search="layers")
    found = RedundancyLens(layers=(), hollow_layers=(1, 2), window=5)
    assert _best(request, given, trials).method == found, "a mask saves nothing by itself"


def test_layers_that_do_not_fit_are_not_tried() -> None:
    judge = Judge([0.1] * 12)
    along_the_dial(VTW(), HOST, lambda method: method.sites(HOST) != VTW(layer=8).sites(HOST), judge, 0.45)
    assert list(judge.judged)[-1].sites(HOST) == VTW(layer=9).sites(HOST)


def test_a_smooth_dial_is_bisected() -> None:
    judge = Judge([1 / 12] * 12)
    along_the_dial(DivPrune(), HOST, anything, lambda method: 1 - (method.keep or 0), 0.3)
    along_the_dial(Random(layer=0), HOST, anything, judge, 0.3)
    good = [method for method, kl in judge.judged.items() if kl <= 0.3]
    assert min(method.keep or 0 for method in good) == math.ceil(0.7 * 64) / 64
    assert len(judge.judged) < 9


@pytest.mark.parametrize("method", [FastV(), SPU(), V2Drop()], ids=lambda method: method.name())
def test_greedy_keeps_what_matters(method: Method) -> None:
    """Early layers matter, later ones do not: tokens stay until there, and leave then."""
    judge = Judge([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, *[0.001] * 6])
    greedy(method, HOST, 1, judge, 0.1)
    found = list(judge.judged)[-1]
    curve = shares(found)
    assert judge.judged[found] <= 0.1
    assert curve == sorted(curve, reverse=True)
    assert curve[5] > 0.9
    assert curve[-1] < 0.1
    assert len(judge.judged) < 12 * 5


def test_greedy_does_not_spend_all_at_once() -> None:
    judge = Judge([0.1] * 12)
    greedy(SPU(), HOST, 0, judge, 0.3)
    curve = shares(list(judge.judged)[-1])
    assert 0.2 < sum(0.1 * (1 - share) for share in curve) <= 0.3 + 1e-9
    assert curve[-1] < curve[2] - 0.2, "something was left for the layers that came later"


@pytest.mark.parametrize("steepness", [0.0, 4.0, 20.0])
def test_the_sigmoid_that_is_least_is_found(steepness: float) -> None:
    target = sigmoid(HOST.layers, steepness, steepness / 2)
    judged: dict[Method, float] = {}

    def judge(method: Method) -> float:
        judged[method] = sum((a - b) ** 2 for a, b in zip(shares(method), target))
        return judged[method]

    def cost(method: Method) -> float:
        return sum(shares(method)) / HOST.layers

    def spend(turn: object) -> Method | None:
        setting = Dial(FastV(), HOST, cost, turn).set(0.5)  # type: ignore[arg-type]
        return setting.method if setting.reachable else None

    along_sigmoids(FastV(), HOST, 0, judge, spend)
    best = min(judged, key=lambda method: judged[method])
    assert abs(cost(best) - 0.5) <= TOLERANCE
    assert [a - b for a, b in zip(shares(best), target)] == pytest.approx([0.0] * 12, abs=0.12)
    assert len(judged) <= 10
    assert len({round(cost(method), 1) for method in judged}) == 1, "all at one budget"


def test_out_of_reach_nothing_is_judged() -> None:
    along_sigmoids(FastV(), HOST, 0, lambda method: pytest.fail("nothing to judge"), lambda turn: None)


def test_options_are_moved_one_by_one() -> None:
    judged: dict[Method, float] = {}

    def judge(method: Method) -> float:
        assert isinstance(method, SPU)
        off = abs((method.every or 1) - 5) + abs(method.cutoff - 0.3)
        judged[method] = off + (method.mode == "residual")
        return judged[method]

    among_options(SPU(schedule="halving", every=1), HOST, anything, judge, lambda method: method)
    best = min(judged, key=lambda method: judged[method])
    assert isinstance(best, SPU)
    assert (best.every, best.mode, best.schedule) == (5, "low_frequency_energy", "halving")
    assert best.cutoff == pytest.approx(0.3, abs=0.03)
    assert (best.keep, best.ratio) == (None, None), "these are the dial's"


def test_options_of_a_part_of_a_sum() -> None:
    def judge(method: Method) -> float:
        first, second = method.parts()
        assert isinstance(first, DivPrune)
        assert isinstance(second, FastV)
        return abs((second.layer or 2) - 5)

    tried: list[Method] = []

    def spend(method: Method) -> Method:
        tried.append(method)
        return method

    among_options(DivPrune() + FastV(), HOST, anything, judge, spend)
    assert min(map(judge, tried)) == 0


def test_what_the_budget_cannot_pay_and_the_model_cannot_do_is_not_judged() -> None:
    """FastV at layer 6 or later is too dear, at layer 3 it does not fit."""

    def judge(method: Method) -> float:
        assert isinstance(method, FastV)
        assert method.layer in (0, 1, 2, 4, 5)
        return -method.layer

    def spend(method: Method) -> Method | None:
        assert isinstance(method, FastV)
        return method if method.layer is not None and method.layer < 6 else None

    among_options(FastV(layer=8), HOST, lambda m: m.layer != 3, judge, spend)  # type: ignore[attr-defined]


def test_moves() -> None:
    assert moves("a", Literal["a", "b", "c"]) == ["b", "c"]
    assert moves(None, Literal["a", "b"] | None) == ["a", "b"]
    assert moves(True, bool) == [False]
    assert moves(2, int) == [1, 3, 0, 4, 6]
    assert moves(0.4, float) == [0.3, 0.5, 0.2, 0.6]
    assert moves(None, int | None) == [1, 2, 4, 8]
    assert moves((2, 5), tuple[int, ...]) == [(1, 5), (3, 5), (0, 5), (4, 5), (2, 4), (2, 6), (2, 3), (2, 7)]
    assert moves("text", str) == []
    assert moves(((1, 0.5),), tuple[tuple[int, float], ...]) == []


SCHEDULED = {SPU(): 0, LUVC(): 0, FastV(): 1, V2Drop(): 1, IPCV() + FastV(): 1, ADSC(): 0}
UNSCHEDULED = (VTW(), DivPrune(), ToMe(), DivPrune() + VTW(), SPU() + FastV())


@pytest.mark.parametrize("method", SCHEDULED, ids=repr)
def test_methods_that_follow_a_schedule(subject: Asker, method: Method) -> None:
    def fits(method: Method) -> bool:
        try:
            compress(subject.model, method).remove()
        except FoveateError:
            return False
        return True

    first = takes_schedule(method, subject.host, fits)
    assert first == SCHEDULED[method]
    schedule = Schedule(((first, 0.75), (4, 0.5), (8, 0.0)))
    paced = method.with_schedule(schedule)
    found = [site for site in paced.sites(subject.host) if site.at == "decoder"]
    assert [(site.layer, site.shares[-1]) for site in found] == [pytest.approx(stage) for stage in schedule.stages]
    assert fits(paced)


@pytest.mark.parametrize("method", UNSCHEDULED, ids=repr)
def test_methods_that_follow_none(method: Method) -> None:
    assert takes_schedule(method, HOST, anything) is None
    with pytest.raises(ConfigError, match="schedule"):
        method.with_schedule(Schedule(((1, 0.5),)))


def test_stages_of_a_curve() -> None:
    assert Schedule.along([1.0, 0.8, 0.79, 0.5, 0.5, 0.004]).stages == ((1, 0.8), (3, 0.5), (5, 0.0))
    assert Schedule.along([0.5, 0.5, 0.4], first=1).stages == ((1, 0.5), (2, 0.4))
    assert Schedule.along([1.0, 1.0]).stages == ()
    assert Schedule.along([1.0, 0.99, 0.98, 0.97]).stages == ((2, 0.98),), "small steps wait"
    flat, cliff = sigmoid(10, 0.0, 0.0), sigmoid(10, 200.0, 100.0)
    assert flat == [0.5] * 10
    assert [round(share) for share in cliff] == [1] * 5 + [0] * 5
