"""PruneSID: groups, what is redundant in them and their quotas by a plain loop; serving."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at

import foveate
from foveate import Host, PruneSID, Site
from foveate.ops import spectrum
from foveate.serving.plan import Item, make_plan


@settings(max_examples=25, deadline=None)
@given(grids, st.integers(0, 1000), st.floats(0.01, 0.9))
def test_what_stays_by_loops(grid: Any, seed: int, keep: float) -> None:
    """Cosines around a common direction, so that some are redundant."""
    tokens = tokens_at(grid, seed, channels=60)
    hidden = tokens.hidden + 0.7
    paid = torch.randint(1, 6, (len(tokens),), generator=torch.Generator().manual_seed(seed))
    start, expected = 0, []
    for n, kept in zip(tokens.counts, tokens.budget(keep)):
        members, x = list(range(start, start + n)), hidden[start : start + n]
        observed = torch.sigmoid(x).T
        _, strength, loading = torch.linalg.svd(observed - observed.mean(0), full_matrices=False)
        there = [i for i in range(max(kept // 4, 1)) if i == 0 or strength[i] ** 2 > 1e-6 * strength[0] ** 2]
        of = {i: int(loading[there, i - start].abs().argmax()) for i in members}
        unit = torch.nn.functional.normalize(x, dim=-1)
        alike = unit @ unit.T
        limit = kept / 32 * float(alike.triu(1).sum()) / max(n * (n - 1) / 2, 1)
        order = sorted(members, key=lambda i: (-int(paid[i]), i))
        fresh: list[int] = []
        for i in order:
            if all(of[i] != of[j] or float(alike[i - start, j - start]) <= limit for j in fresh):
                fresh.append(i)
        counts = [sum(of[i] == g for i in fresh) for g in range(max(kept // 4, 1))]
        free, end, chosen = kept - sum(c > 0 for c in counts), 0, []
        for g, count in enumerate(counts):
            share = round(end + count, 6)
            places = round(share * free / sum(counts)) - round(end * free / sum(counts))
            end = int(share)
            quota = min((count > 0) + places, count, 5 * -(-kept // 64))
            chosen += [i for i in fresh if of[i] == g][:quota]
        rest = [i for i in fresh if i not in chosen] + [i for i in order if i not in fresh]
        expected += sorted((chosen + rest)[:kept])
        start += n
    seen = replace(tokens, hidden=hidden, signals={"received": paid.float()})
    assert PruneSID().reduce(seen, Site.output(keep)).keep.tolist() == expected


def test_components_of_few_channels_and_of_none() -> None:
    """More tokens than channels; and tokens that are all alike, which one component holds."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    loading = torch.linalg.svd((x - x.mean(1, True)).T, full_matrices=False)[2][:3].abs()
    assert spectrum.component_of(x, (9,), (3,)).tolist() == loading.argmax(0).tolist()
    alike = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).repeat(6, 1)
    assert spectrum.component_of(alike, (4, 2), (2, 1)).tolist() == [0, 0, 0, 0, 2, 2]


def test_it_is_served() -> None:
    family: Any = foveate.list_families()["llava"]
    plan = make_plan(
        PruneSID(keep=0.25), Host("llava", tiny.BLOCKS - 1, tiny.LAYERS, True), family, tiny.config("llava")
    )
    assert plan.tower_counts(Item(((1, 6, 6),), ((1, 6, 6),))) == (9,)
