"""EvoPrune against plain loops over its formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

from foveate import EvoPrune, Host, Site, Tokens, ToMe
from foveate.errors import ConfigError

quick = settings(max_examples=40, deadline=None)


def plainly(method: EvoPrune, tokens: Tokens, keep: float) -> list[int]:
    """Packed indices of those that are left."""
    gone, start = set(), 0
    for n, kept in zip(tokens.counts, tokens.budget(keep)):
        merges = min(n - kept, n // 2)
        unit = [row / row.norm() for row in tokens.hidden[start : start + n].double()]
        lone = []
        for i in range(n):
            near = sorted(float((unit[i] - unit[k]).norm()) for k in range(n) if k != i)[: method.neighbours]
            lone.append(1 - sum(math.exp(-(d**2) / method.bandwidth**2) for d in near) / max(len(near), 1))
        got = tokens.received[start : start + n].tolist()
        order = sorted(range(n), key=lambda i: -got[i])
        protected = set(order[: min(int(method.protect * n), n - 2 * merges)])
        best = []
        for i in range(0, n, 2):
            pairs = [
                (
                    float(unit[i] @ unit[j]) * math.exp(-method.diversity * (lone[i] + lone[j]))
                    - (4 if {i, j} & protected else 0),
                    -j,
                )
                for j in range(1, n, 2)
            ]
            best += [(max(pairs)[0], -i)] if pairs else []
        gone |= {start - i for _, i in sorted(best, reverse=True)[:merges]}
        start += n
    return [i for i in range(len(tokens)) if i not in gone]


@quick
@given(
    grids,
    st.integers(0, 1000),
    st.sampled_from([{}, {"protect": 0.8}, {"diversity": 3.0, "neighbours": 1}, {"means": "plain"}]),
    st.booleans(),
)
def test_merges_by_loops(grid: list[tuple[int, int, int]], seed: int, options: dict[str, Any], ties: bool) -> None:
    """Also where the protected leave too few pairs, and where many are equal: the earlier token merges, into the earlier
    partner; a group is the mean of its members by size."""
    tokens = tokens_at(grid, seed)
    received = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed))
    if ties:
        kinds = torch.nn.functional.one_hot(tokens.hidden[:, :3].argmax(-1), 6).float()
        tokens, received = replace(tokens, hidden=kinds), (received * 4).floor() / 4
    tokens, method = replace(tokens, signals={"received": received}), EvoPrune(**options)
    for keep in (0.9, 0.6, 0.5):
        found = method.reduce(tokens, Site.tower(1, keep, mid=True))
        assert found.keep.tolist() == plainly(method, tokens, keep)
        assert found.groups is not None
        group = found.groups()
        for k in range(len(found.keep)):
            members = group == k
            weight = tokens.sizes[members][:, None] ** (method.means == "sizes")
            torch.testing.assert_close(found.hidden[k], (tokens.hidden[members] * weight).sum(0) / weight.sum())


def test_the_protected_stay_while_there_are_other_pairs() -> None:
    tokens = tokens_at([(1, 6, 6)], 3)
    received = torch.arange(36.0)
    tokens = replace(tokens, signals={"received": received})
    found = EvoPrune().reduce(tokens, Site.tower(0, 0.8, mid=True))
    assert found.groups is not None
    alone = torch.bincount(found.groups())[found.groups()] == 1
    assert bool(alone[27:].all()), "a quarter of them"


def test_without_protection_and_diversity_it_is_matching_of_hidden_states() -> None:
    """Two of its three terms taken away, ToMe with these metrics is left."""
    tokens = tokens_at([(1, 5, 5), (2, 3, 4)], 5)
    tokens = replace(tokens, signals={"received": torch.rand(len(tokens)), "keys": tokens.hidden[:, None]})
    site = Site.tower(0, 0.6, mid=True)
    plain = EvoPrune(protect=0.0, diversity=0.0).reduce(tokens, site)
    assert torch.equal(plain.keep, ToMe().reduce(tokens, site).keep)


def test_blocks() -> None:
    host = Host("llava", blocks=23, layers=32, has_cls=True)
    sites = EvoPrune().sites(host)
    assert [site.layer for site in sites] == list(range(0, 23, 2))
    assert sites[-1].shares[-1] == pytest.approx(64 / 576)
    steps = [before - after for before, after in zip((1.0, *sites[-1].shares), sites[-1].shares)]
    assert steps == pytest.approx([(1 - 1 / 9) / 12] * 12)
    assert [site.layer for site in EvoPrune(schedule="mean", keep=0.5).sites(host)] == list(range(23))
    assert [site.layer for site in EvoPrune().sites(Host("x", 4, 6, False))] == [1, 3]


@pytest.mark.parametrize("options", [{"neighbours": 0}, {"bandwidth": 0.0}, {"diversity": -1.0}])
def test_what_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least 1 neighbour, a bandwidth above 0 and a diversity of 0 or more"):
        EvoPrune(**options)
    with pytest.raises(ConfigError, match=r"0\.25 is the least"):
        EvoPrune(keep=0.1).sites(Host("x", 4, 6, False))
