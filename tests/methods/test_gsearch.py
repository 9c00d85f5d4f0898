"""G-Search: the sigmoid over depth, its ranking, and that a search finds its schedule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import GSearch, Host
from foveate.errors import ConfigError
from foveate.handle import host_of
from foveate.lab.evaluation.tune.search import takes_schedule
from foveate.models import family_of
from foveate.schedule import Schedule
from foveate.serving.plan import make_plan

HOST = Host("llava", blocks=23, layers=32, has_cls=True)


@pytest.mark.parametrize("steepness", [None, 0.0, 6.0, 40.0, 400.0])
@pytest.mark.parametrize("keep", [None, 0.25, 0.8])
def test_shares_are_a_sigmoid_of_the_mean_that_is_asked_for(steepness: float | None, keep: float | None) -> None:
    """Every share is within a step of the logistic curve of that steepness whose mean over all layers is ``keep``."""
    plan = GSearch(steepness=steepness, keep=keep).plan(HOST)
    k, wanted = 12.0 if steepness is None else steepness, 0.5 if keep is None else keep
    assert plan.mean(32) == pytest.approx(wanted)
    assert plan.layers[0] >= 1
    shares = plan.curve(32)

    def mean(offset: float) -> float:
        return (1 + sum(1 / (1 + math.exp(k * i / 31 - offset)) for i in range(1, 32))) / 32

    low, high = -50.0, k + 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < wanted else (low, middle)
    for i in range(1, 32):
        assert shares[i] == pytest.approx(1 / (1 + math.exp(k * i / 31 - high)), abs=0.03)


@settings(max_examples=20, deadline=None)
@given(grids, st.integers(0, 1000), st.sampled_from([0.2, 0.5, 0.8]), st.sampled_from([0.0, 12.0, 400.0]))
def test_cuts_by_loops(grid: list[tuple[int, int, int]], seed: int, keep: float, steepness: float) -> None:
    """Before each layer, among those that are there; few different values, so that many are equal: the earlier token stays."""
    tokens, draw = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    method, whole = GSearch(keep=keep, steepness=steepness), tokens.clip_counts
    left = list(range(len(tokens)))  # of the tokens that there were at the start
    for site in method.sites(replace(HOST, layers=10)):
        rows = torch.randint(0, 4, (len(tokens), 2), generator=draw).float() / 4
        paid = [float(row[0] + row[1]) / 2 for row in rows]
        counts, start, stay = tokens.budget(site), 0, []
        for n, k in zip(tokens.counts, counts):
            stay += sorted(sorted(range(start, start + n), key=lambda i: (-paid[i], i))[:k])
            start += n
        found = method.reduce(replace(tokens, signals={"last_row": rows}), site)
        assert (found.keep.tolist(), found.counts) == (stay, counts)
        left, tokens = [left[i] for i in stay], tokens.select(found.keep, found.counts)
        share = site.shares[-1]
        assert tokens.clip_counts == tuple(max(1, int(n * share + 0.5)) if share else 0 for n in whole)
    assert left == sorted(left)


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_each_layer_ranks_by_the_attention_of_the_one_before(family: str) -> None:
    """Against eager attention: those that stay are those to which the last token has paid most, in the mean over heads."""
    model, batch = tiny.model(family, "eager"), tiny.inputs(family, [[3, "image", 5]])
    visual = tiny.visual_mask(family, batch)[0]
    method = GSearch(schedule=((1, 0.5), (3, 0.25)))
    with torch.no_grad():
        first = tiny.of_attention(family, model(**batch, output_attentions=True).attentions)[0][0].mean(0)[-1][visual]
        with foveate.compress(model, method) as handle:
            model(**batch)
            one, two = handle.report().visits
    n = int(visual.sum())
    best = sorted(first.argsort(descending=True, stable=True)[: len(one.kept[0])].tolist())
    assert list(one.kept[0]) == best
    assert len(best) == round(n / 2 + 1e-6)
    assert len(two.kept[0]) == math.floor(n / 4 + 0.5)
    assert set(two.kept[0]) < set(best)


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_all_words_may_rank(family: str) -> None:
    """With ``rows="text"`` it is the sum of what the words behind the image pay."""
    model, batch = tiny.model(family, "eager"), tiny.inputs(family, [[3, "image", 5]])
    visual = tiny.visual_mask(family, batch)[0]
    method = GSearch(schedule=((1, 0.5),), rows="text")
    with torch.no_grad():
        paid = tiny.of_attention(family, model(**batch, output_attentions=True).attentions)[0][0].mean(0)
        words = paid[int(visual.nonzero().max()) + 1 :].sum(0)[visual]
        with foveate.compress(model, method) as handle:
            model(**batch)
            (visit,) = handle.report().visits
    assert list(visit.kept[0]) == sorted(words.argsort(descending=True, stable=True)[: len(visit.kept[0])].tolist())


def test_a_search_gives_it_a_schedule() -> None:
    assert takes_schedule(GSearch(), HOST, lambda method: method.plan(HOST).layers[0] > 0) == 1  # type: ignore[attr-defined]
    found = GSearch(steepness=3.0, keep=0.4).with_schedule(Schedule(((2, 0.7), (9, 0.1))))
    assert found == GSearch(schedule=((2, 0.7), (9, 0.1)))


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="give either `schedule` or `steepness`"):
        GSearch(schedule="halving", steepness=3.0)
    with pytest.raises(ConfigError, match=r"steepness=-1\.0: give 0 \(a flat curve\)"):
        GSearch(steepness=-1.0)
    with pytest.raises(ConfigError, match=r"0\.03125 is the least"):
        GSearch(keep=0.01).sites(HOST)
    with pytest.raises(foveate.FoveateError, match="there is no decoder layer 40"):
        GSearch(schedule=((40, 0.5),)).sites(HOST)


def test_serving_takes_it() -> None:
    """Its counts follow from the grid; the engine refuses what it must be told of a prompt in pieces, as for FastV."""
    model = tiny.model("qwen2_5_vl")
    plan = make_plan(GSearch(), host_of(model), family_of(model.config), model.config)
    assert plan.layers == tuple(GSearch().plan(host_of(model)).layers)
