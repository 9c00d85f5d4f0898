"""Budgets of prompts of their own: what they may be, and that a batch of several says what each prompt says alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
from test_plan import item

from foveate import ADSC, LUVC, DivPrune, FastV, Method, Random
from foveate.errors import FoveateError
from foveate.handle import host_of
from foveate.models import family_of
from foveate.serving.budgets import SERVERS, Budgets, asked, check_limit
from foveate.serving.plan import Plan, make_plan

WRONG = [
    (0.3, "expected an object such as"),
    ({"keep": 0.9}, r'"keep" is 0.9, expected a number above 0, up to 0.8'),
    ({"keep": math.nan}, '"keep" is nan'),
    ({"keep": -math.inf}, '"keep" is -inf'),
    ({"keep": 0}, '"keep" is 0'),
    ({"keep": 10**400}, '"keep" is 10'),
    ({"keep": True}, '"keep" is True'),
    ({"keep": "0.3"}, "\"keep\" is '0.3'"),
    ({"keep": None}, '"keep" is None'),
    ({"keep": 0.3, "method": "random"}, "has no 'method'"),
    ({"profile": "fast"}, "this server has no profiles"),
]


def plan_of(method: Method, limit: Any) -> Plan:
    model = tiny.model("qwen2_5_vl")
    host = host_of(model)
    plan = make_plan(method, host, family_of(model.config), model.config)
    plan = replace(plan, budgets=Budgets(method, host, model.config, limit))
    check_limit(plan)
    return plan


@pytest.mark.parametrize(("given", "sentence"), WRONG, ids=lambda x: str(x)[:30])
def test_wrong_ones_are_refused(given: Any, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        asked(given, plan_of(LUVC(keep=0.5), 0.8))


@pytest.mark.parametrize("limit", [0.4, 1.1, math.nan, "0.8", None, True])
def test_limits_that_are_none(limit: Any) -> None:
    with pytest.raises(FoveateError, match=r'"limit" is .*, expected a number from 0.5, what luvc keeps here, to 1'):
        plan_of(LUVC(keep=0.5), limit)


def test_cuts_stay_where_the_engine_has_set_them_up() -> None:
    plan = plan_of(ADSC(keep=0.6), 0.7)
    with pytest.raises(
        FoveateError,
        match=r"would act before the language model, inside .*\(before layer 1, 2\), .*nearer to the server's",
    ):
        asked({"keep": 0.05}, plan)
    with pytest.raises(FoveateError, match=r"this server keeps 0\.5 of every image"):
        asked({"keep": 0.3}, replace(plan_of(Random(keep=0.5), 0.8), budgets=None))


@pytest.mark.parametrize("method", [LUVC(keep=0.5), DivPrune(keep=0.5), Random(keep=0.5)], ids=repr)
def test_counts_are_those_of_the_method_with_that_budget(method: Method) -> None:
    plan = plan_of(method, 0.8)
    own, alone = replace(item(6, 8), choice=asked({"keep": 0.7}, plan)), plan_of(method.with_keep(0.7), 0.8)
    assert plan.entry_counts(own) == alone.entry_counts(item(6, 8)) != plan.entry_counts(item(6, 8))
    assert plan.inner_counts(own) == alone.inner_counts(item(6, 8))
    assert asked(None, plan) is asked({}, plan) is SERVERS
    least = replace(item(6, 8), choice=asked({"keep": 1e-300}, plan))
    assert plan.entry_counts(least) == (1,)


KEEPS = (None, 0.7, 0.8, None, 0.6, 0.8)
SERVED: dict[str, tuple[Method, dict[str, Any]]] = {
    "luvc": (LUVC(keep=0.5), {}),
    "fastv": (FastV(keep=0.6, layer=2), {"enable_chunked_prefill": False}),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_batch_of_several(name: str) -> None:
    """The first ones are one prompt, so that caches must tell its budgets apart."""
    pytest.importorskip("vllm")
    from served import ask, engine, expected, request
    from test_engine import FAMILY, agree

    method, options = SERVED[name]
    sizes = [(48, 48)] * 4 + [(40, 24), (24, 32)]
    plain = [
        request(FAMILY, f"the cat@{'the dog ' * max(i - 2, 0)}", size, seed=max(i, 3)) for i, size in enumerate(sizes)
    ]
    plain[5] = request(FAMILY, "@the dog and@the cat", (24, 32), (40, 24))
    wanted, want = [], []
    for each, keep in zip(plain, KEEPS, strict=True):
        want += expected(FAMILY, method if keep is None else method.with_keep(keep), [each])
        wanted.append(each if keep is None else {**each, "mm_processor_kwargs": {"foveate": {"keep": keep}}})
    with engine(FAMILY, method, limit=0.8, **options) as llm:
        agree(ask(llm, wanted), want)
        agree(ask(llm, wanted[::-1]), want[::-1])
    assert not any(want[i].agrees(want[k]) for i, k in ((0, 1), (0, 2), (1, 2)))
