"""Profiles: other methods of a server, which prompts ask for by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
from test_plan import item

from foveate import ADSC, LUVC, VTCCLS, DivPrune, DyCoke, EvoPrune, GSearch, Method, VScan
from foveate.errors import FoveateError
from foveate.handle import host_of
from foveate.lab.serve import profile
from foveate.lab.terminal import CommandError
from foveate.models import family_of
from foveate.serving.budgets import Budgets, asked
from foveate.serving.plan import Plan, make_plan
from foveate.serving.profiles import most_asked, with_profiles

LATE, EARLY = ADSC(layers=(2, 4), keep=0.6), DivPrune(keep=0.3)


def plan_of(method: Method, profiles: Any, limit: float | None = None) -> Plan:
    model = tiny.model("qwen2_5_vl")
    host, family = host_of(model), family_of(model.config)
    plan = make_plan(method, host, family, model.config)
    if limit is not None:
        plan = replace(plan, budgets=Budgets(method, host, model.config, limit))
    return with_profiles(plan, profiles, lambda each: make_plan(each, host, family, model.config))


def test_counts_are_those_of_each_method_alone() -> None:
    """Before every layer where any of them drops tokens, also in plans that drop none there."""
    plan = plan_of(LUVC(keep=0.5), {"late": LATE.to_dict(), "early": EARLY.to_dict(), "exact": "none"}, limit=0.7)
    assert plan.layers == (2, 4, 5)
    for name, method in (("late", LATE), ("early", EARLY), ("exact", None)):
        own = replace(item(6, 8), choice=asked({"profile": name}, plan))
        full = (12,)
        alone = None if method is None else plan_of(method, {})
        assert plan.entry_counts(own) == (full if alone is None else alone.entry_counts(item(6, 8)))
        cuts = {} if alone is None else dict(zip(alone.layers, alone.inner_counts(item(6, 8))))
        left, expected = plan.entry_counts(own), []
        for layer in plan.layers:
            left = cuts.get(layer, left)
            expected.append(left)
        assert plan.inner_counts(own) == tuple(expected)
    budget = replace(item(6, 8), choice=asked({"keep": 0.6}, plan))
    assert len(plan.inner_counts(budget)) == 3
    assert most_asked(plan) == {"profile": "exact"}
    assert most_asked(plan_of(LUVC(keep=0.5), {"early": EARLY.to_dict()}, limit=0.7)) == {"keep": 0.7}
    assert str(plan).endswith("; profile exact: no method; profile late: " + str(plan.profiles["late"]))


WRONG = [
    ({"profile": "fats"}, r"\"profile\" is 'fats' \(the nearest is 'fast'\); this server has exact, fast"),
    ({"profile": None}, '"profile" is None; this server has exact, fast'),
    ({"profile": "fast", "keep": 0.3}, "a profile has a budget: give one of them"),
    ({"profil": "fast"}, 'has no \'profil\'; it has "keep" and "profile"'),
    ({"profile": math.nan}, '"profile" is nan'),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG, ids=str)
def test_a_prompt_that_asks_for_none_of_them(given: Any, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        asked(given, plan_of(LUVC(keep=0.5), {"fast": EARLY.to_dict(), "exact": "none"}))


@pytest.mark.parametrize(
    ("profiles", "sentence"),
    [
        ("fast", "\"profiles\" is 'fast', expected an object such as"),
        ({"a b": "none"}, "names are of letters, digits"),
        ({"fast": {"method": "luvcc"}}, "profile fast: there is no method 'luvcc'"),
        ({"fast": 3}, "profile fast: a method is an object"),
        ({"slow": DyCoke().to_dict()}, "profile slow: dycoke acts on the KV cache while decoding"),
    ],
    ids=str,
)
def test_profiles_that_are_none(profiles: Any, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        plan_of(LUVC(keep=0.5), profiles)


def test_a_command_spells_them() -> None:
    assert profile("fast=luvc,keep=0.3") == ("fast", LUVC(keep=0.3))
    assert profile("late=adsc,layers=[2,4],keep=0.6") == ("late", LATE)
    assert profile("exact=none") == ("exact", None)
    for word, sentence in (("fast", "is not NAME=METHOD"), ("fast=luvcc", "there is no method 'luvcc'")):
        with pytest.raises(CommandError, match=f"--profile '{word}'.*{sentence}"):
            profile(word)


def test_a_batch_of_several() -> None:
    """One prompt with every profile, so that caches must tell them apart, beside others; alone each says the same."""
    pytest.importorskip("vllm")
    from served import ask, engine, expected, request
    from test_engine import FAMILY, agree

    profiles: dict[str, Method | None] = {
        "": LUVC(keep=0.5),
        "early": EARLY,
        "late": LATE,
        "looks": VScan(keep=0.4),
        "asks": GSearch(keep=0.6),
        "tower": EvoPrune(keep=0.6),
        "cls": VTCCLS(keep=0.4),
        "exact": None,
    }
    asks, wanted, want = [*profiles, "late", "exact", ""], [], []
    for i, name in enumerate(asks):
        size, text = ((48, 48), "") if i < len(profiles) else ((40, 24), "the dog " * i)
        plain = request(FAMILY, f"the cat@{text}", size, seed=3)
        want += expected(FAMILY, profiles[name], [plain])
        wanted.append({**plain, "mm_processor_kwargs": {"foveate": {"profile": name}}} if name else plain)
    named = {name: "none" if method is None else method.to_dict() for name, method in profiles.items() if name}
    with engine(FAMILY, profiles[""], profiles=named, enable_chunked_prefill=False) as llm:
        agree(ask(llm, wanted), want)
        agree(ask(llm, wanted[::-1]), want[::-1])
    assert not any(want[i].agrees(want[k]) for i in range(len(profiles)) for k in range(i))
