"""FastVID: scenes, salient tokens and merged anchors by a plain loop; one image; a video whose anchors are full; serving."""

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
from foveate import FastVID, Host, Site
from foveate.errors import ConfigError
from foveate.serving.plan import make_plan

videos = st.lists(st.tuples(st.integers(1, 10), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=2)


def peaks(x: dict[int, torch.Tensor], k: int) -> list[int]:
    """The ``k`` densest tokens that are far from what is denser, by four neighbours, however many peaks there are."""
    away = {i: {j: float((x[i] - x[j]).norm()) / len(x[i]) ** 0.5 for j in x} for i in x}
    near = min(4, len(x))
    dense = {i: sum(each**2 for each in sorted(away[i].values())[:near]) / max(near, 1) for i in x}
    widest = max((max(row.values()) for row in away.values()), default=0.0)
    denser = {i: [j for j in x if (dense[j], j) < (dense[i], i)] for i in x}
    reach = {i: min([away[i][j] for j in denser[i]], default=widest) for i in x}
    return sorted(x, key=lambda i: -reach[i] * 2.718281828459045 ** -dense[i])[:k]


@settings(max_examples=12, deadline=None)
@given(videos, st.integers(0, 1000), st.sampled_from([0.1, 0.4, 0.8, 1.0]), st.booleans())
def test_what_stays_by_loops(grid: Any, seed: int, keep: float, attends: bool) -> None:
    tokens, generator = tokens_at(grid, seed, channels=5), torch.Generator().manual_seed(seed)
    hidden = tokens.hidden + 3 * torch.randn(4, 5, generator=generator)[tokens.segment % 4]
    received = torch.rand(len(tokens), generator=generator)
    seen = replace(tokens, hidden=hidden, signals={"received": received})
    method, site = FastVID(segments="dynamic", tau=0.6), Site.output(keep) if attends else Site.entry(keep)
    reduction = method.reduce(seen, site)
    found = dict(zip(reduction.keep.tolist(), reduction.hidden))  # type: ignore[arg-type]

    budget, span, start, expected = tokens.budget(keep), 0, 0, {}
    for n_frames, height, width in grid:
        cells = height * width
        frames = [list(range(start + f * cells, start + (f + 1) * cells)) for f in range(n_frames)]
        mean = [hidden[frame].mean(0) for frame in frames]
        alike = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(mean, mean[1:])]
        cuts = {f for f in range(n_frames - 1) if alike[f] < 0.6} | set(
            sorted(range(n_frames - 1), key=lambda f: alike[f])[:7]
        )
        scenes: list[list[int]] = [[]]
        for f in range(n_frames):
            scenes[-1].append(f)
            if f in cuts:
                scenes.append([])
        for scene in filter(None, scenes):
            own = {f: budget[span + f] for f in scene}
            best = {f: k - int((0.4 if attends else 1.0) * k) for f, k in own.items()}
            rest = sum(own.values()) - sum(best.values())
            holds = sorted(scene[-1 - 4 * i] for i in range((len(scene) + 3) // 4))
            most = sum(cells - best[f] for f in holds)
            assert rest <= most or sum(own.values()) <= cells * len(scene)
            ranked = {f: sorted(frames[f], key=lambda i: -float(received[i])) for f in scene}
            kept = [i for i in found if any(i in frames[f] for f in scene)]
            assert len(kept) == sum(own.values())
            if (
                rest > most or len({cells - best[f] for f in holds}) > 1
            ):  # what is over is salient elsewhere: counted alone
                expected |= {i: found[i] for i in kept}
                continue
            share = [
                int(rest * (i + 1) / len(holds) + 0.5) - int(rest * i / len(holds) + 0.5) for i in range(len(holds))
            ]
            anchors = [
                i
                for f, k in zip(holds, share)
                for i in peaks({i: hidden[i] for i in frames[f] if i not in ranked[f][: best[f]]}, k)
            ]
            salient = [i for f in scene for i in ranked[f][: best[f]]]
            expected |= {i: hidden[i] for i in salient}
            members: dict[int, list[int]] = {i: [] for i in anchors}
            for i in (i for f in scene for i in frames[f] if i not in salient and i not in anchors and anchors):
                members[max(anchors, key=lambda j: float(torch.cosine_similarity(hidden[i], hidden[j], dim=0)))].append(
                    i
                )
            for i, others in members.items():
                expected[i] = 0.6 * hidden[i] + 0.4 * hidden[[i, *others]].mean(0)  # the mean is of itself, too
        span, start = span + n_frames, start + n_frames * cells
    assert sorted(found) == sorted(expected)
    for i, x in expected.items():
        torch.testing.assert_close(found[i], x, rtol=1e-4, atol=1e-5)


def test_a_long_scene_has_anchors_in_every_fourth_frame() -> None:
    tokens = replace(tokens_at([(16, 2, 5)], 0), signals={"received": torch.rand(160)})
    method = FastVID(segments="dynamic", tau=0.0)
    tokens = replace(tokens, hidden=tokens.hidden * 0.01 + torch.arange(1.0, 17)[tokens.segment, None].sqrt())
    counts = method.reduce(tokens, Site.output(0.5)).counts
    assert sum(counts) == 80
    assert min(counts) >= 3
    assert max(counts) > 5


def test_options_and_serving() -> None:
    with pytest.raises(ConfigError, match=r"context=1\.5 is not a share of the survivors"):
        FastVID(context=1.5)
    family: Any = foveate.list_families()["qwen2_5_vl"]
    host = Host("qwen2_5_vl", tiny.BLOCKS, tiny.LAYERS, False, frames=frozenset({"tower_output", "lm_entry"}))
    assert FastVID().resolve(host).temporal
    assert not FastVID().resolve(replace(host, frames=frozenset())).temporal
    with pytest.raises(ConfigError, match="fastvid decides by the content of an image how many tokens stay"):
        make_plan(FastVID(), host, family, tiny.config("qwen2_5_vl"))
