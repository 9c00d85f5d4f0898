"""Oracle and anti-oracle keep exactly the tokens that they should, on every family whose images are one span each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from foveate import Method
from foveate.errors import ConfigError, FoveateError
from foveate.lab.evaluation.bounds import AntiOracle, Oracle, asked

ROWS: list[list[tiny.Item]] = [[2, "image", 3], [1, "image", 2, "image", 4], [4, "image", 1]]
ROW_OF_SPAN = (0, 1, 1, 2)
ONE_SPAN = ("llava", *tiny.PACKED)  # evidence comes image by image


def shape(family: str) -> tuple[int, int]:
    return (6, 6) if family == "llava" else (3, 4)


def kept(family: str, method: Method, evidence: Sequence[np.ndarray]) -> list[set[int]]:
    """Raster indices of the survivors of every span."""
    model, batch = tiny.model(family), tiny.inputs(family, ROWS)
    with torch.no_grad(), asked(evidence), foveate.compress(model, method) as handle:
        model(**batch)
        (visit,) = handle.report().visits
    return [set(span) for span in visit.kept]


def draw(family: str, seed: int, share: float) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    size = (4, *shape(family))
    cover = generator.random(size) * (generator.random(size) < share)
    cover[3] = 0  # the last row asks about nothing
    return list(cover.astype(np.float32))


@pytest.mark.parametrize("family", ONE_SPAN)
def test_the_anti_oracle_drops_the_evidence_and_nothing_else(family: str) -> None:
    evidence = draw(family, 0, 0.3)
    found = kept(family, AntiOracle(), evidence)
    assert found == [set(np.flatnonzero(cells.ravel() == 0).tolist()) for cells in evidence]
    assert len(found[3]) == evidence[3].size


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.sampled_from(ONE_SPAN))
def test_the_oracle_keeps_what_is_covered_most(seed: int, share: float, keep: float, family: str) -> None:
    evidence = draw(family, seed, share)
    found = kept(family, Oracle(keep=keep), evidence)
    for row in range(3):
        spans = [span for span in range(4) if ROW_OF_SPAN[span] == row]
        cover = np.concatenate([evidence[span].ravel() for span in spans])
        here = np.concatenate([np.isin(np.arange(evidence[span].size), list(found[span])) for span in spans])
        budget = sum(max(int(keep * evidence[span].size + 0.5), int(keep > 0)) for span in spans)
        assert here.sum() == budget
        assert (here & (cover > 0)).sum() == min((cover > 0).sum(), budget), "evidence goes first"
        if 0 < (here & (cover > 0)).sum() < (cover > 0).sum():
            assert cover[here].min() >= cover[~here].max(), "of the evidence, what is covered most"


def test_the_rest_is_spread_evenly() -> None:
    nothing = [np.zeros((6, 6), np.float32)] * 4
    stride = [set(range(2, 36, 4))] * 4
    assert kept("llava", Oracle(keep=0.25), nothing)[0] == stride[0]
    assert [len(span) for span in kept("llava", Oracle(keep=0.25), nothing)] == [9] * 4


def test_evidence_of_one_image_may_use_the_budget_of_both() -> None:
    evidence = [np.zeros((6, 6), np.float32) for _ in range(4)]
    evidence[2][:3] = 1
    found = kept("llava", Oracle(keep=0.25), evidence)
    assert found[2] == set(range(18))
    assert found[1] == set()
    assert len(found[0]) == len(found[3]) == 9


@pytest.mark.parametrize("method", [Oracle(), AntiOracle()])
def test_nobody_said_what_is_asked(method: Method) -> None:
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    with torch.no_grad(), foveate.compress(model, method):
        with pytest.raises(FoveateError, match="does not know what is asked"):
            model(**batch)
        with asked([np.zeros((6, 6), np.float32)] * 3), pytest.raises(FoveateError, match="but the images have"):
            model(**batch)
        with pytest.raises(FoveateError, match="does not know"):  # and it is forgotten again
            model(**batch)


def test_only_the_oracle_has_a_budget() -> None:
    assert Oracle().with_keep(0.3) == Oracle(keep=0.3)
    with pytest.raises(ConfigError, match="antioracle removes nothing that a share could be of"):
        AntiOracle().with_keep(0.3)
    assert not {"oracle", "antioracle"} & set(foveate.list_methods())
