"""PruneVid: segments, static cells, clusters and what the question keeps, by plain loops; caches; options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import tokens_at

import foveate
from foveate import PruneVid, Signal, Site
from foveate.errors import ConfigError
from foveate.ops import stills

videos = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 2), st.integers(1, 3)), min_size=1, max_size=2)
ROWS = Signal("text_rows", heads=True)


def repaired(labels: list[int]) -> list[tuple[int, int]]:
    """Clusters made contiguous, step by step: what the longest runs do not hold joins the longer neighbour."""
    n, out = len(labels), list(labels)
    runs = [(i, next(j for j in range(i, n + 1) if j == n or labels[j] != labels[i])) for i in range(n)]
    runs = [(a, b) for a, b in runs if a == 0 or labels[a - 1] != labels[a]]
    for label in set(labels):
        own = [(a, b) for a, b in runs if labels[a] == label]
        most = max(b - a for a, b in own)
        for a, b in own:
            if most == 1 or b - a < most:
                out[a:b] = [-1] * (b - a)
    i = 0
    while i < n:
        j = i
        while j < n and out[j] == -1:
            j += 1
        if j > i:
            left = next((i - k for k in range(i - 1, -2, -1) if k < 0 or out[k] != out[i - 1]), 0) - 1 if i else 0
            right = next(k - j for k in range(j, n + 1) if k == n or out[k] != out[j]) if j < n else 0
            out[i:j] = [out[i - 1] if i and left >= right else out[j] if j < n else 0] * (j - i)
        i = j + 1
    cuts = [0, *(k for k in range(1, n) if out[k] != out[k - 1]), n]
    return [(a, b - 1) for a, b in zip(cuts, cuts[1:])]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_segments_are_contiguous(labels: list[int]) -> None:
    assert stills.contiguous(labels) == repaired(labels)


def test_golden_segments() -> None:
    assert stills.contiguous([0, 0, 1, 0, 2, 2, 2]) == [(0, 1), (2, 6)]
    assert stills.contiguous([3, 1, 2]) == [(0, 2)]
    assert stills.contiguous([5, 0, 0, 1, 1, 0, 0]) == [(0, 2), (3, 4), (5, 6)]


@settings(max_examples=20, deadline=None)
@given(videos, st.integers(0, 1000), st.sampled_from([0.1, 0.4, 0.9]), st.sampled_from([0.0, 0.8]))
def test_what_merges_over_time_by_loops(grid: Any, seed: int, keep: float, tau: float) -> None:
    """Of each segment the cells that stay alike, the most alike first, as long as the budget is left."""
    tokens, generator = tokens_at(grid, seed, channels=4), torch.Generator().manual_seed(seed)
    x = tokens.hidden + 2 * torch.randn(4, generator=generator)
    videos = [len(clip) for clip in tokens.spans.clips]
    cuts = [[(0, n // 2), (n // 2 + 1, n - 1)] if n > 2 else [(0, n - 1)] for n in videos]
    kept = [max(1, int(keep * n)) for n in tokens.clip_counts]
    into, group, sizes = stills.merge_in_segments(x, tokens.index, tokens.counts, tokens.spans.sizes, cuts, tau, kept)
    frame, first = tokens.segment.tolist(), 0
    for windows, n_frames, k in zip(cuts, videos, kept):
        own = [i for i in range(len(x)) if first <= frame[i] < first + n_frames]
        found = []
        for a, b in windows:
            for cell in {int(tokens.index[i]) for i in own}:
                same = [i for i in own if first + a <= frame[i] <= first + b and int(tokens.index[i]) == cell]
                pairs = [(i, j) for i in same for j in same if i != j]
                mean = sum(float(torch.cosine_similarity(x[i], x[j], dim=0)) for i, j in pairs) / max(len(pairs), 1)
                found += [(mean, same)] if pairs and mean > tau else []
        left, whole = len(own), {i: i for i in own}
        for _, same in sorted(found, key=lambda each: -each[0]):
            if left - (len(same) - 1) < k:
                break
            left, whole = left - (len(same) - 1), whole | dict.fromkeys(same, min(same))
        assert {i: int(into[i]) for i in own} == whole
        for i in own:
            many = sum(j == i for j in whole.values()) > 1
            assert int(group[i]) == (2 * frame[i] + (not many) if whole[i] == i else 2 * len(tokens.counts))
        first += n_frames
    assert sizes == [int((group == g).sum()) for g in range(2 * len(tokens.counts))]


def test_the_question_keeps_its_share_of_each_group() -> None:
    """Of two frames and static cells, the ones that any head of any word looks at most; and what they were is known by name."""
    tokens = tokens_at([(2, 1, 5)], 0)
    still = tokens.name[[0, 1, 2]]
    rows = torch.zeros(10, 2, 3)
    rows[torch.arange(10), 1, 2] = torch.arange(10.0)
    seen = replace(tokens, state={"still": [still]}, signals={ROWS: rows})
    reduction = PruneVid().reduce(seen, Site.decoder(2, 0.4))
    assert reduction.keep.tolist() == [2, 4, 8, 9]
    assert torch.equal(seen.state["chosen"][0], tokens.name[reduction.keep])


def test_caches_hold_what_was_chosen() -> None:
    model = tiny.model("qwen2_5_vl")
    with torch.no_grad(), foveate.compress(model, PruneVid(layers=(0, 3), ratios=(0.5, 0.5))) as handle:
        model.generate(**tiny.inputs("qwen2_5_vl", [[3, (8, 8, 8), 4]]), max_new_tokens=2, do_sample=False)
        report = handle.report()
    assert len({length for row in report.kv_lengths for length in (row if isinstance(row, tuple) else (row,))}) == 1


def test_options() -> None:
    with pytest.raises(ConfigError, match=r"tau=1\.5 is not a limit for cosines"):
        PruneVid(tau=1.5)
