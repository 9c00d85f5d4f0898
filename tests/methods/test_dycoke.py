"""DyCoke's two stages: what frames repeat by a plain loop and by golden values; and where frames are not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from calls import CHUNKS, generate
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packed import tokens_at

import foveate
from foveate import DyCoke, Host, Tokens
from foveate.errors import FoveateError
from foveate.runtime.layout import frames, tokens_of
from foveate.serving.plan import Item, make_plan

quick = settings(max_examples=40, deadline=None)
HOST = Host("qwen2_5_vl", blocks=32, layers=32, has_cls=False, frames=frozenset({"lm_entry"}))
videos = st.lists(st.tuples(st.integers(1, 11), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3)


def cut(method: DyCoke, tokens: Tokens) -> list[list[int]]:
    """Which cells of each frame stay."""
    reduction = method.reduce(tokens, method.sites(HOST)[0])
    kept = reduction.survivors(tokens)
    return [kept.index[kept.segment == span].tolist() for span in range(len(kept.counts))]


def by_hand(frames_: list[torch.Tensor], ratio: float, exact: bool) -> list[list[int]]:
    """The windows of one video in cells of its frames ``(P, C)``, as the paper tells it; or as the authors' code cuts it."""
    n = len(frames_)
    found: list[list[int]] = []
    changed = []
    for f, x in enumerate(frames_):
        if f % 4 == 0:
            found.append(list(range(len(x))))
            continue
        before = frames_[f - 2] if f % 4 == 2 else frames_[f - 1]
        alike = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in zip(x, before)]
        found.append(sorted(range(len(x)), key=lambda i: (alike[i], i)))
        changed.append(f)
    left = sum(len(frames_[f]) for f in changed)
    total, end, given_ = int(left * ratio + 0.5), 0, 0
    for f in changed:
        end += len(frames_[f])
        count = int(total * end / left + 0.5) - given_
        given_ += count
        if exact and n > 4:
            count = int((1 - (1 - ratio)) * len(frames_[f]))
            count = len(frames_[f]) if f % 4 == 2 and f - 2 not in range(0, n - 4, 4) else count
        found[f] = sorted(found[f][:count])
    if exact and n > 4 and n % 2:
        found[-1] = []
    return found


@quick
@given(videos, st.integers(0, 1000), st.sampled_from([0.3, 0.5, 0.1, 0.0]), st.booleans(), st.booleans())
def test_windows_by_loops(grid: list[tuple[int, int, int]], seed: int, ratio: float, exact: bool, still: bool) -> None:
    """Ragged videos and images in one call; of frames that are all alike the first cells stay."""
    tokens = tokens_at(grid, seed)
    order = (tokens.segment * 100 + tokens.index).argsort()
    tokens = tokens.select(order, tokens.counts)
    if still:
        tokens = replace(tokens, hidden=torch.ones_like(tokens.hidden))
    expected: list[list[int]] = []
    parts = list(tokens.hidden.split(list(tokens.counts)))
    for clip in tokens.spans.clips:
        expected += by_hand([parts[span] for span in clip], ratio, exact)
    assert cut(DyCoke(ratio=ratio, exact=exact), tokens) == expected


def five_frames() -> Tokens:
    """Two cells each; the channels turn by the number of quarters in the table."""
    turns = torch.tensor([[0, 0], [0, 1], [1, 0], [2, 0], [3, 3]]) * torch.pi / 2
    tokens = tokens_of(frames([(5, 1, 2)]))
    return replace(tokens, hidden=torch.stack([turns.cos(), turns.sin()], -1).flatten(0, 1))


def test_golden_values() -> None:
    """Five frames that change in one cell each."""
    assert cut(DyCoke(ratio=0.5), five_frames()) == [[0, 1], [1], [0], [0], [0, 1]]
    assert cut(DyCoke(ratio=0.5, exact=True), five_frames()) == [[0, 1], [1], [0], [0], []]
    assert cut(DyCoke(keep=0.4), five_frames()) == [[0, 1], [], [], [], [0, 1]]
    assert cut(DyCoke(keep=0.2), five_frames()) == [[1], [], [], [], [1]], "first frames cannot stay whole"


def test_the_same_cell_of_a_frame_that_lost_some() -> None:
    """A cell that the frame before no longer has is new."""
    tokens = five_frames()
    tokens = tokens.select(torch.tensor([0, 2, 3, 5, 8]), (1, 2, 1, 0, 1))
    assert cut(DyCoke(ratio=0.5), tokens) == [[0], [1], [1], [], [0]]


@quick
@given(videos, st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.3, 0.7]), st.sampled_from([0.0, 0.8, 0.9]))
def test_steps_of_decoding_by_loops(
    grid: list[tuple[int, int, int]], seed: int, ratio: float, threshold: float
) -> None:
    """Ragged videos and images, each with a ranking of its own; few different values, so that many are equal; steps whose
    attention is that of an earlier one, turned in one video alone, or new."""
    tokens, draw = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    method = DyCoke(ratio=1.0, decode_ratio=ratio, threshold=threshold)
    (site,) = method.sites(HOST)
    first, new = torch.randint(1, 5, (2, len(tokens), 2), generator=draw).float() / 8
    clip = torch.repeat_interleave(torch.arange(len(tokens.clip_counts)), torch.tensor(tokens.clip_counts))
    steps = first, first, torch.where((clip == 0)[:, None], new, first), new, first
    before: list[list[float] | None] = [None] * len(tokens.clip_counts)
    chosen: list[list[int]] = [[] for _ in before]
    for rows in steps:
        start = 0
        for video, n in enumerate(tokens.clip_counts):
            paid, earlier = [float(row[0] + row[1]) / 2 for row in rows[start : start + n]], before[video]
            likeness = 0.0 if earlier is None else cosine(paid, earlier)
            assume(abs(likeness - threshold) > 1e-5 or threshold == 0)
            if earlier is None or likeness < threshold:
                k = 0 if ratio == 0 else max(1, int(n * ratio + 0.5))
                chosen[video] = sorted(start + i for i in sorted(range(n), key=lambda i: (-paid[i], i))[:k])
            before[video] = paid
            start += n
        found = method.reduce(replace(tokens, signals={"last_row": rows}), site)
        assert found.keep.tolist() == [i for each in chosen for i in each]
        assert list(found.counts) == [
            sum(int(tokens.segment[i]) == span for i in found.keep.tolist()) for span in range(len(tokens.counts))
        ]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


def test_a_video_is_cut_before_the_language_model_and_an_image_is_not() -> None:
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", [[3, (5, 4, 8), 5], [2, (4, 8), 4]])
    with torch.no_grad(), foveate.compress(model, DyCoke()) as handle:
        generate(model, batch)
        visits = handle.report().visits
    assert (visits[0].before, visits[0].after) == ((8,) * 6, (8, 2, 3, 2, 8, 8))
    assert visits[1].site == "decode 3"


def test_where_frames_are_not_known() -> None:
    llava, hidden = tiny.model("llava"), tiny.model("glm4v")
    for model in (llava, hidden):
        with foveate.compress(model, DyCoke()) as handle:
            assert [site.at for site in handle.method.sites(foveate.handle.host_of(model))] == ["decode"]
        for options in ({"keep": 0.5}, {"ratio": 0.5}):
            with pytest.raises(FoveateError, match=r"dycoke compares frames of one video, and in .* known nowhere"):
                foveate.compress(model, DyCoke(**options))  # type: ignore[arg-type]


@pytest.mark.skipif(not CHUNKS, reason="this transformers cannot cut a prompt with images into chunks")
def test_a_video_in_chunks_is_refused_and_an_image_is_not() -> None:
    model = tiny.model("qwen2_5_vl")
    one, video = (tiny.inputs("qwen2_5_vl", [[3, item, 5]]) for item in ((8, 8), (3, 4, 8)))
    with torch.no_grad(), foveate.compress(model, DyCoke(keep=0.5)):
        generate(model, one, prefill_chunk_size=11)
        generate(model, video, prefill_chunk_size=64)
        with pytest.raises(FoveateError, match=r"compares the frames of a video, .* use prefill_chunk_size=None"):
            generate(model, video, prefill_chunk_size=11)


@pytest.mark.parametrize("method", [DyCoke(ratio=0.5, decode_ratio=1.0), DyCoke(keep=0.4, decode_ratio=1.0)], ids=repr)
def test_served_without_its_decoding(method: DyCoke) -> None:
    """An engine knows how many tokens of each frame stay; what a step of decoding reads is not its business."""
    family: Any = foveate.list_families()["qwen2_5_vl"]
    config, tokens = tiny.config("qwen2_5_vl"), tokens_at([(6, 2, 4)], 0)
    plan = make_plan(method, HOST, family, config)
    reduction = method.reduce(tokens, method.sites(HOST)[0])
    assert plan.entry_counts(Item(((6, 2, 4),), ((6, 2, 4),))) == reduction.counts
    with pytest.raises(FoveateError, match="acts on the KV cache while decoding"):
        make_plan(replace(method, decode_ratio=None), HOST, family, config)
