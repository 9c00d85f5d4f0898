"""ViTCoP: clusters, places and merges by plain loops and golden values; budgets; both stages on tiny models."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import tokens_at

import foveate
from foveate import Host, Signal, Site, Tokens, ViTCoP
from foveate.errors import ConfigError
from foveate.ops import clusters
from foveate.runtime.layout import frames, tokens_of

HOST = Host("llava", blocks=23, layers=32, has_cls=True)
ENTERED = Signal("hidden", layer=0)
quick = settings(max_examples=40, deadline=None)
images = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=2)
counted = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4)


def of_clusters(cluster: list[int], norm: list[float], k: int) -> tuple[list[int], dict[int, list[int]]]:
    """Survivors of one image, and the members of those that are merged, by their norms: the smaller the better."""
    members = defaultdict(list)
    for i, c in enumerate(cluster):
        members[c].append(i)
    order = sorted(members, key=lambda c: (sum(norm[i] for i in members[c]), c))
    groups = [members[c] for c in order]
    if not k:
        return [], {}
    if len(groups) > k:
        groups = [*groups[: k - 1], sorted(i for group in groups[k - 1 :] for i in group)]
    free, n = k - len(groups), len(cluster) - len(groups)
    claims = [(len(group) - 1) * free for group in groups]
    quotas = [int(claim / n + 0.5) if n else 0 for claim in claims]
    short = free - sum(quotas)
    for j in range(len(groups)) if short > 0 else reversed(range(len(groups))):
        able = quotas[j] < len(groups[j]) - 1 if short > 0 else quotas[j] > 0
        if short and able:
            quotas[j] += 1 if short > 0 else -1
            short += -1 if short > 0 else 1
    alone, merged = [], {}
    for group, quota in zip(groups, quotas):
        best = sorted(group, key=lambda i: (norm[i], i))[:quota]
        rest = [i for i in group if i not in best]
        alone += best
        merged[rest[len(rest) // 2]] = rest
    return sorted([*alone, *merged]), merged


@quick
@given(counted, st.integers(0, 1000))
def test_places_by_loops(sizes: list[tuple[int, int, int]], seed: int) -> None:
    """Ragged images with more and with fewer clusters than places, of equal norms, and frames that keep nothing."""
    generator = torch.Generator().manual_seed(seed)
    counts = [n for n, _, _ in sizes]
    n_clusters, k = [min(c, n) for n, c, _ in sizes], [min(kept, n) for n, _, kept in sizes]
    cluster, norm, expected, groups, base, start = [], [], [], {}, 0, 0
    for n, c, kept in zip(counts, n_clusters, k):
        own = torch.cat([torch.arange(c), torch.randint(0, c, (n - c,), generator=generator)])
        own = own[torch.randperm(n, generator=generator)].tolist()  # type: ignore[assignment]
        norms = (torch.randint(1, 4, (n,), generator=generator) / 4).tolist()
        survivors, merged = of_clusters(own, norms, kept)  # type: ignore[arg-type]
        expected += [start + i for i in survivors]
        groups |= {start + i: [start + j for j in merged.get(i, [i])] for i in survivors}
        cluster += [base + c for c in own]
        norm += norms
        base, start = base + c, start + n
    keep, group, alone = clusters.thin(torch.tensor(cluster), -torch.tensor(norm), counts, n_clusters, k)
    assert keep.tolist() == expected
    for place, i in enumerate(expected):
        assert (group == place).nonzero().flatten().tolist() == groups[i]
    assert (group == len(keep)).sum() == sum(n for n, kept in zip(counts, k) if not kept)
    assert all(len(groups[i]) == 1 for i in alone.nonzero().flatten().tolist())


def clustered(x: torch.Tensor, place: list[tuple[float, float]], k: int, cutoff: float, reach: float) -> list[int]:
    """The centre of each token of one image."""
    n = len(x)
    away = [[float((a - b).norm()) for b in x] for a in x]
    scale = (sum(each**2 for row in away for each in row) / n**2) ** 0.5 * cutoff
    dense = [sum(2.718281828459045 ** -((each / scale) ** 2 if scale else 0.0) for each in row) for row in away]
    near = [[((a - c) ** 2 + (b - d) ** 2) ** 0.5 <= reach for c, d in place] for a, b in place]
    order = sorted(range(n), key=lambda i: (-round(dense[i], 5), i))
    link, way = list(range(n)), [float("inf")] * n
    for rank, i in enumerate(order):
        for j in order[:rank]:
            if near[i][j] and away[i][j] < way[i]:
                link[i], way[i] = j, away[i][j]
    centres = sorted(range(n), key=lambda i: (-way[i] * dense[i], i))[:k]
    found = []
    for i in range(n):
        while i not in centres and link[i] != i:
            i = link[i]
        found.append(i)
    return [i if i in centres else min(sorted(centres), key=lambda c, j=j: away[j][c]) for j, i in enumerate(found)]


@quick
@given(images, st.integers(0, 1000), st.sampled_from([0.1, 0.3, 1.0]), st.sampled_from([0.3, 0.6, 1.0]))
def test_clusters_by_loops(grid: Any, seed: int, share: float, reach: float) -> None:
    tokens = tokens_at(grid, seed)
    tokens = replace(tokens, signals={ENTERED: tokens.hidden})
    method = ViTCoP(clusters=share, reach=reach, cutoff=0.7)
    n_clusters = method._n_clusters(tokens)
    number, start, base = method._clusters(tokens, n_clusters).tolist(), 0, 0
    for n, k, (height, width) in zip(tokens.counts, n_clusters, tokens.spans.shape):
        index = tokens.index[start : start + n].tolist()
        place = [(i // width / height, i % width / width) for i in index]
        expected = clustered(tokens.hidden[start : start + n].double(), place, k, 0.7, reach)
        ranked = sorted(set(expected))
        assert [each - base for each in number[start : start + n]] == [ranked.index(c) for c in expected]
        start, base = start + n, base + k


def six(k: int, **options: Any) -> tuple[Any, Tokens]:
    """Two clusters of three tokens in a row; keys grow from left to right."""
    tokens = tokens_of(frames([(1, 1, 6)]))
    x = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 5.2])[:, None]
    keys = torch.arange(1.0, 7)[:, None, None] * torch.tensor([[[3.0, 4.0], [3.0, 4.0]]])
    tokens = replace(tokens, hidden=x + 1, signals={"keys": keys, ENTERED: x})
    method = ViTCoP(clusters=1 / 3, **options)
    site = Site("decoder", 2, k / 6, shares=(k / 6,), signals=("keys", ENTERED))
    return method.reduce(tokens, site), tokens


def test_golden_values() -> None:
    reduction, tokens = six(4)
    assert reduction.keep.tolist() == [0, 2, 3, 5], "the best of each, and the middle one of the others"
    assert reduction.groups().tolist() == [0, 1, 1, 2, 3, 3]
    torch.testing.assert_close(reduction.hidden[:, 0], torch.tensor([1.0, 1.15, 6.0, 6.15]))
    assert reduction.sizes.tolist() == [1, 2, 1, 2]
    added, _ = six(4, add=True)
    torch.testing.assert_close(added.hidden[:, 0], torch.tensor([1.0, 1.15 + 1.2, 6.0, 6.15 + 6.2]))
    one, _ = six(1)
    assert one.keep.tolist() == [3], "more clusters than places"
    torch.testing.assert_close(one.hidden[:, 0], tokens.hidden.mean(0))
    score = ViTCoP().score(tokens, Site("decoder", 22, 0.5))
    assert score.tolist() == [-5, -10, -15, -20, -25, -30], "the norm of the mean key"


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_key_norms_are_those_before_rotary_embeddings(family: str) -> None:
    """At one position all heads are turned alike, so the norm of the mean key does not know where a token stands: rotated keys
    rank as what the layer's projection gives would."""
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5], [2, "image", 4, "image", 7]])
    scores: list[torch.Tensor] = []
    turned: list[torch.Tensor] = []
    plain: list[torch.Tensor] = []

    class Spy(ViTCoP):
        def score(self, tokens: Tokens, site: Site) -> torch.Tensor:
            if site.at == "decoder" and len(site.shares) > 1:
                turned.append(tokens.keys)
            scores.append(super().score(tokens, site))
            return scores[-1]

    visual = tiny.visual_mask(family, batch)
    attention = tiny.lm(model).layers[3].self_attn

    def keys(module: Any, args: Any, out: torch.Tensor) -> None:
        heads = out.unflatten(-1, (-1, attention.head_dim))  # (B, L, H, d)
        plain.append(heads[visual])

    hook = attention.k_proj.register_forward_hook(keys)
    with torch.no_grad(), foveate.compress(model, Spy(layers=(0, 2, 4), ratios=(1.0, 1.0, 0.5))):
        model(**batch)
    hook.remove()
    torch.testing.assert_close(scores[-1], -plain[0].mean(1).norm(dim=-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(turned[0], plain[0], atol=1e-3), "these are rotated"


@pytest.mark.parametrize(
    ("mean", "counts", "share"),
    [(1 / 3, (288, 253, 51), 0.18), (2 / 9, (230, 165, 33), 0.15), (1 / 9, (172, 77, 15), 0.12)],
)
def test_budgets_of_the_paper(mean: float, counts: tuple[int, ...], share: float) -> None:
    """576 tokens, at a mean share per layer of 32."""
    method, left, found = ViTCoP(keep=mean), 576, []
    for site in method.sites(HOST):
        left = round(576 * site.keep) if site.at == "tower_output" else round(left * site.keep)
        found.append(left)
    assert [site.layer for site in method.sites(HOST)] == [0, 2, 22]
    assert found == pytest.approx(counts, abs=1)
    tokens = tokens_of(frames([(1, 10, 10)]))
    assert method._n_clusters(tokens) == (round(100 * share),)
    assert method.mean(HOST) == pytest.approx(mean)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_three_stages_on_a_model(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5, "image"], [2]])
    with torch.no_grad(), foveate.compress(model, ViTCoP(keep=0.5)) as handle:
        model(**batch)
        visits = handle.report().visits
    assert [visit.site for visit in visits] == ["tower_output", "decoder 1", "decoder 4"]
    for first, second in zip(visits, visits[1:]):
        assert all(set(later) <= set(kept) for kept, later in zip(first.kept, second.kept))


def test_what_cannot_be() -> None:
    for name in ("clusters", "cutoff", "reach"):
        with pytest.raises(ConfigError, match=f"vitcop: {name}=0 leaves no cluster: give more than 0"):
            ViTCoP(**{name: 0.0})  # type: ignore[arg-type]
