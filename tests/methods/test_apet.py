"""ApET: basis, errors and what joins whom by a plain loop; tokens that are all alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

from foveate import ApET, Site
from foveate.errors import ConfigError


@settings(max_examples=25, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.02, 0.9), st.sampled_from([1, 3, 10]))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, basis: int) -> None:
    tokens = tokens_at(grid, seed, channels=12)
    reduction = ApET(basis=basis).reduce(tokens, Site.output(keep))
    values = tokens.hidden[reduction.keep] if reduction.hidden is None else reduction.hidden
    found = dict(zip(reduction.keep.tolist(), values))
    start, kept_in_all = 0, 0
    for n, kept in zip(tokens.counts, tokens.budget(keep)):
        x = tokens.hidden[start : start + n].double()
        own = {i - start: value for i, value in found.items() if start <= i < start + n}
        start, kept_in_all = start + n, kept_in_all + kept
        if kept in (0, n):
            assert sorted(own) == list(range(kept))
            continue
        bases: list[int] = []
        while len(bases) < min(basis, kept):
            away = [float((x[i] - (x[bases] if bases else x.mean(0, True))).norm(dim=1).min()) for i in range(n)]
            most = max(away[i] for i in range(n) if i not in bases) * (1 if bases else 0.9999**0.5)
            bases.append(next(i for i in range(n) if i not in bases and away[i] >= most))
        weight = torch.linalg.lstsq(x[bases].T, x.T).solution
        error = (x.T - x[bases].T @ weight).norm(dim=0)
        others = sorted((i for i in range(n) if i not in bases), key=lambda i: -float(error[i]))
        targets = others[: kept - len(bases)] or bases
        assert sorted(own) == sorted(set(bases) | set(targets))
        members: dict[int, list[int]] = {i: [i] for i in own}
        for i in (i for i in range(n) if i not in own):
            members[max(targets, key=lambda j: float(torch.cosine_similarity(x[i], x[j], dim=0)))].append(i)
        for i, group in members.items():
            torch.testing.assert_close(own[i].double(), x[group].mean(0), rtol=1e-4, atol=1e-5)
    assert len(found) == kept_in_all


def test_tokens_that_are_all_alike() -> None:
    """A basis of them has one direction, and everything else is nothing but that."""
    tokens = tokens_at([(1, 4, 5), (1, 1, 1)], 0)
    alike = replace(tokens, hidden=torch.full((21, 6), 300.0))
    hidden = ApET().reduce(alike, Site.output(0.6)).hidden
    torch.testing.assert_close(hidden, torch.full((13, 6), 300.0))


def test_options() -> None:
    with pytest.raises(ConfigError, match="basis=0"):
        ApET(basis=0)
