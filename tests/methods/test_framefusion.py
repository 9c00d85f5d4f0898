"""FrameFusion: merging and pruning by plain loops, how much its layers hold, and where it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from by_loops import best
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import tokens_at

import foveate
from foveate import FrameFusion, Host, Site
from foveate.errors import ConfigError, FoveateError
from foveate.handle import host_of

DEPTH, SITES = 8, [Site.entry(), Site.decoder(1), Site.decoder(2, 0.5)]
videos = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 2), st.integers(1, 4)), min_size=1, max_size=3)


def by_loops(tokens: list[tuple[int, int, Any]], paid: list[dict[int, float]], keep: float, tau: float) -> list[Any]:
    """Of one video, ``(frame, cell, state)`` of each token, what is left after each site: names, and the last states."""
    present, whole, held, merges, done, found = dict(enumerate(tokens)), len(tokens), 0, True, False, []
    for layer in range(len(SITES)):
        n, cosine, before = len(present), {}, {}
        target = min(max(round((keep * DEPTH * whole - held) / (DEPTH - layer)), 1), n)
        for name, (frame, cell, x) in present.items():
            earlier = [other for other, (f, c, _) in present.items() if c == cell and f < frame]
            if earlier:
                before[name] = max(earlier, key=lambda other: present[other][0])
                cosine[name] = float(torch.cosine_similarity(x, present[before[name]][2], dim=0))
        if layer and not done and (layer == 2 or not merges):
            names, done = list(present), True
            stay = {names[i] for i in best([paid[layer][name] for name in names], target)}
            present = {name: token for name, token in present.items() if name in stay}
        elif merges and not done:
            near = [name for name in cosine if cosine[name] >= tau]
            goes = sorted(near, key=lambda name: -cosine[name])[: n - target]
            groups: dict[int, list[Any]] = {}
            for name in present:
                head = name
                while head in goes:
                    head = before[head]
                groups.setdefault(head, []).append(present[name][2])
            present = {head: (*present[head][:2], torch.stack(xs).mean(0)) for head, xs in groups.items()}
            merges, done = len(near) >= 0.1 * n, len(near) >= n - target
        held += len(present)
        found.append(dict(sorted(present.items())))
    return found


@settings(max_examples=40, deadline=None)
@given(videos, st.integers(0, 1000), st.sampled_from([0.28, 0.5, 0.9]), st.sampled_from([0.0, 0.4, 0.9]))
def test_what_is_left_by_loops(grid: Any, seed: int, keep: float, tau: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens, method = tokens_at(grid, seed), FrameFusion(keep=keep, tau=tau, layer=2, depth=DEPTH)
    tokens = replace(tokens, hidden=tokens.hidden + 2 * torch.randn(6, generator=generator), pooled=True, state={})
    rows = torch.rand(3, len(tokens), 2, generator=generator)
    name, start, expected = torch.arange(len(tokens)), 0, []
    for n in tokens.clip_counts:
        own = range(start, start + n)
        video = [(int(tokens.segment[i]), int(tokens.index[i]), tokens.hidden[i]) for i in own]
        paid = [{i - start: float(row[i].mean()) for i in own} for row in rows]
        expected.append([{start + i: token for i, token in left.items()} for left in by_loops(video, paid, keep, tau)])
        start += n
    for number, site in enumerate(SITES):
        state, shown = tokens.state, {"last_row": rows[number][name]}
        reduction = method.reduce(replace(tokens, signals=shown), site)
        tokens, name = replace(reduction.survivors(tokens), state=state, pooled=True), name[reduction.keep]
        left = {i: token for video in expected for i, token in video[number].items()}
        assert name.tolist() == list(left)
        torch.testing.assert_close(tokens.hidden, torch.stack([x for *_, x in left.values()]))


def test_layers_hold_as_much_as_was_said() -> None:
    """Whether frames merge or not, and of an image."""
    model, host = tiny.model("qwen2_5_vl"), host_of(tiny.model("qwen2_5_vl"))
    for row in ([[3, (4, 8, 8), 2]], [[3, (8, 8), 2]]):
        for tau in (0.0, 2.0 / 3, 1.0):
            with torch.no_grad(), foveate.compress(model, FrameFusion(keep=0.5, tau=tau, layer=2)) as handle:
                model(**tiny.inputs("qwen2_5_vl", row))
                report = handle.report()
            assert report.shares["tokens"] == pytest.approx(0.5, abs=2 / report.visual_tokens)
    assert FrameFusion().mean(host) == pytest.approx(0.3)


def test_what_it_refuses() -> None:
    for options, sentence in (
        (dict(tau=1.5), "tau=1.5 is not a limit for cosines"),
        (dict(depth=0), "give the decoder layers"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            FrameFusion(**options)
    with pytest.raises(ConfigError, match="least"):
        FrameFusion(keep=0.2, layer=4).sites(Host("qwen2_vl", 4, 6, False))
    with pytest.raises(FoveateError, match="framefusion compares frames of one video"):
        foveate.compress(tiny.model("glm4v"), FrameFusion())
