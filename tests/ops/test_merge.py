"""Merging against plain loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from segment_cases import budgets, cloud, cosine, lattice, lengths, quick, rows, seeds
from torch import Tensor

from foveate.ops import merge
from foveate.runtime.layout import frames, tokens_of

Budgets = tuple[list[int], list[int]]
RULES = get_args(merge.Rule)


def match_by_loop(features: Tensor, counts: list[int], r: list[int]) -> list[tuple[int, int]]:
    pairs = []
    for span, merges in zip(rows(counts), r):
        even, odd = span[0::2], span[1::2]
        best = {i: max(odd, key=lambda j: cosine(features[i], features[j])) for i in even if odd}
        order = sorted(best, key=lambda i: -cosine(features[i], features[best[i]]))
        pairs += [(i, best[i]) for i in order[:merges]]
    return pairs


@quick
@given(budgets(), seeds)
def test_bipartite_match(budget: Budgets, seed: int) -> None:
    counts, r = budget[0], [n // 2 for n in budget[1]]
    for features in (cloud(sum(counts), seed, 5), lattice(sum(counts), seed)):  # the second has ties
        source, target = merge.bipartite_match(features, counts, r)
        assert source.dtype == target.dtype == torch.long
        assert list(zip(source.tolist(), target.tolist())) == match_by_loop(features, counts, r)
        assert len(set(source.tolist())) == sum(r)
        assert not set(source.tolist()) & set(target.tolist())


@quick
@given(budgets(), seeds)
def test_nearest_target(budget: Budgets, seed: int) -> None:
    counts, k = budget
    generator = torch.Generator().manual_seed(seed)
    targets = [
        i
        for span, n in zip(rows(counts), k)
        for i in sorted(span.start + int(j) for j in torch.randperm(len(span), generator=generator)[:n])
    ]
    for features in (cloud(sum(counts), seed, 5), lattice(sum(counts), seed)):
        expected = []
        for span in rows(counts):
            own = [t for t in targets if t in span]
            for i in span:
                nearest = i if i in own else max(own, key=lambda t: cosine(features[i], features[t]), default=None)
                expected.append(len(targets) if nearest is None else targets.index(nearest))
        found = merge.nearest_target(features, counts, torch.tensor(targets, dtype=torch.long), k)
        assert found.dtype == torch.long
        assert found.tolist() == expected


@st.composite
def groupings(draw: st.DrawFn) -> list[int]:
    """A group for every token; every group has a member."""
    n_groups = draw(st.integers(1, 5))
    extra = draw(st.lists(st.integers(0, n_groups - 1), max_size=10))
    return draw(st.permutations([*range(n_groups), *extra]))


@quick
@given(groupings(), seeds, st.sampled_from([(), (3,), (2, 2)]))
def test_weighted_mean(group: list[int], seed: int, shape: tuple[int, ...]) -> None:
    x, weight = cloud(len(group), seed, *shape), cloud(len(group), seed + 1).abs() + 0.1
    n_groups = max(group) + 1
    mean = merge.weighted_mean(x, weight, torch.tensor(group), n_groups)
    mass = torch.zeros(n_groups)
    for g in range(n_groups):
        members = [i for i in range(len(group)) if group[i] == g]
        mass[g] = weight[members].sum()
        torch.testing.assert_close(mean[g], sum(weight[i] * x[i] for i in members) / mass[g], rtol=1e-4, atol=1e-5)
    moment, moment_before = torch.tensordot(mass, mean, 1), torch.tensordot(weight, x, 1)
    torch.testing.assert_close(moment, moment_before, rtol=1e-4, atol=1e-4)  # nothing is lost


@quick
@given(lengths, seeds)
def test_merging_equal_tokens_changes_nothing(counts: list[int], seed: int) -> None:
    assume(sum(counts) > 0)
    x = cloud(1, seed, 4).expand(sum(counts), -1)
    generator = torch.Generator().manual_seed(seed)
    _, group = torch.randint(3, (sum(counts),), generator=generator).unique(return_inverse=True)
    weight = cloud(sum(counts), seed + 1).abs() + 0.1
    mean = merge.weighted_mean(x, weight, group, int(group.max()) + 1)
    torch.testing.assert_close(mean, x[: len(mean)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Similarities and sums are taken in single precision; values come back in their own dtype."""
    x = cloud(600, 0, 8).to(dtype)
    found, expected = (merge.bipartite_match(features, [400, 200], [90, 100]) for features in (x, x.float()))
    assert all(map(torch.equal, found, expected))
    group = torch.arange(600) % 2
    mean = merge.weighted_mean(x + 1, torch.ones(600), group, 2)
    assert mean.dtype == dtype
    assert torch.equal(mean, merge.weighted_mean((x + 1).float(), torch.ones(600), group, 2).to(dtype))


def test_gradients() -> None:
    x, weight = cloud(6, 0, 3).requires_grad_(), (cloud(6, 1).abs() + 0.5).requires_grad_()
    group = torch.tensor([0, 1, 1, 2, 0, 1])
    merge.weighted_mean(x, weight, group, 3).square().sum().backward()
    y, v = x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    loss = sum((v[group == g] @ y[group == g] / v[group == g].sum()).square().sum() for g in range(3))
    loss.backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(weight.grad, v.grad)


@pytest.mark.parametrize("dropped", [0, 3])
def test_where_few_tokens_join_the_others_are_copied(dropped: int) -> None:
    x, sizes = cloud(48, 0, 5), cloud(48, 1).abs() + 0.5
    keep = torch.tensor([i for i in range(48) if i % 6])  # 40 of them
    group = torch.arange(48) * 40 // 48
    group[::6] = torch.tensor([7, 7, 7, 0, 39, 12, 12, 3])  # several join one survivor
    group[keep], group[:: 6 * 3] = torch.arange(40), torch.tensor([7, 40 if dropped else 0, 12])
    for rule in ("sizes", "mean"):
        weight = sizes if rule == "sizes" else torch.ones(48)
        expected = merge.weighted_mean(x, weight, group, 41)[:-1]
        found = merge.merged(x, sizes, keep, group, rule)
        torch.testing.assert_close(found, expected)
        alone = torch.bincount(group, minlength=41)[:-1] == 1
        assert torch.equal(found[alone], x[keep[alone]])


def expected(rule: str, x: Tensor, sizes: Tensor, survivor: int, members: list[int]) -> Tensor:
    if rule == "sizes":
        return sum((sizes[i] * x[i] for i in members), torch.zeros(())) / sum(float(sizes[i]) for i in members)
    if rule == "survivor+mean":
        others = [x[i] for i in members if i != survivor]
        return x[survivor] + (sum(others, torch.zeros(())) / len(others) if others else 0)
    total = sum((x[i] for i in members), torch.zeros(()))
    return total / len(members) if rule == "mean" else total


@quick
@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), seeds)
def test_every_rule(choices: list[int], seed: int) -> None:
    n, k = len(choices), min(4, len(choices))
    keep = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k].sort().values
    group = torch.tensor([min(choice, k) for choice in choices]).index_copy(0, keep, torch.arange(k))
    tokens = tokens_of(frames([(1, 1, n)]))
    tokens = replace(tokens, hidden=cloud(n, seed, 3), sizes=cloud(n, seed + 1).abs() + 0.5, strict=True)
    for rule in RULES:
        found: Any = tokens.merge_into(keep, (k,), group, rule, move=True)
        for i, survivor in enumerate(keep.tolist()):
            members = [j for j in range(n) if int(group[j]) == i]
            wanted = expected(rule, tokens.hidden, tokens.sizes, survivor, members)
            torch.testing.assert_close(found.hidden[i], wanted, rtol=1e-4, atol=1e-5)
            assert float(found.sizes[i]) == pytest.approx(sum(float(tokens.sizes[j]) for j in members))
            centre = expected("sizes", tokens.coords, tokens.sizes, survivor, members)
            torch.testing.assert_close(found.coords[i], centre, rtol=1e-4, atol=1e-5)
        assert found.groups().equal(group)
    assert tokens.merge_into(keep, (k,), group).coords is None
    assert tokens_of(frames([(1, 1, n)])).merge_into(keep, (k,), group).hidden is None  # where tokens have no states


def test_gradients_reach_members_and_stay_away_from_what_is_dropped() -> None:
    tokens = tokens_of(frames([(1, 1, 4)]))
    hidden = cloud(4, 0, 2).requires_grad_()
    group = torch.tensor([0, 0, 1, 2])
    for rule in RULES:
        merged = replace(tokens, hidden=hidden).merge_into(torch.tensor([0, 2]), (2,), group, rule)
        assert merged.hidden is not None
        (gradient,) = torch.autograd.grad(merged.hidden.sum(), hidden)
        assert bool((gradient[:3] != 0).all()), rule
        assert gradient[3].tolist() == [0, 0], rule


def test_similarities_are_held_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, counts, chosen, k = cloud(90, 0, 6), [60, 30], torch.tensor([3, 20, 41, 70, 88]), [3, 2]
    whole = [*merge.bipartite_match(x, counts, [20, 9]), merge.nearest_target(x, counts, chosen, k)]
    monkeypatch.setattr(merge, "_CELLS", 100)
    parts = [*merge.bipartite_match(x, counts, [20, 9]), merge.nearest_target(x, counts, chosen, k)]
    assert all(map(torch.equal, whole, parts))
