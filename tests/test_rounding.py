"""Budgets round once: for an image or a whole video, over all cuts of a schedule, and no image vanishes by rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from foveate import (
    ADSC,
    IPCV,
    OIM,
    SPU,
    DivPrune,
    Downsample,
    DyCoke,
    FastV,
    Host,
    Method,
    Random,
    Site,
    Stride,
    Tokens,
    ToMe,
    V2Drop,
    VisionZip,
)
from foveate.errors import ConfigError
from foveate.runtime.cache import _joined
from foveate.runtime.layout import Rows, frames, tokens_of
from foveate.schedule import Schedule, budget, spread

HOST = Host("llava", blocks=32, layers=32, has_cls=True)
quick = settings(max_examples=60, deadline=None)


def video(*lengths: int, frame: int = 0) -> Tokens:
    """Spans of one row of tokens: images of ``lengths``, or with ``frame`` videos of so many frames of that many tokens."""
    return tokens_of(frames([(n, 1, frame) if frame else (1, 1, n) for n in lengths]))


def walk(method: Method, tokens: Tokens, host: Host = HOST) -> list[tuple[int, ...]]:
    """Tokens per span after each site, with hidden states and signals that mean nothing."""
    generator, found = torch.Generator().manual_seed(0), []
    shapes: dict[str, tuple[int, ...]] = {"keys": (2, 3), "residual": (4,), "last_row": (2,), "cls_row": (2,)}
    for site in method.sites(host):
        n = len(tokens)
        signals = {asked: torch.rand(n, *shapes[asked.kind], generator=generator) for asked in site.asked}
        tokens = replace(tokens, hidden=torch.randn(n, 4, generator=generator), signals=signals)
        if site.keep:
            tokens = method.reduce(tokens, site).survivors(tokens)
        else:  # nobody is asked where nothing stays
            tokens = tokens.keep_mask(torch.zeros(n, dtype=torch.bool)).survivors(tokens)
        found.append(tokens.counts)
    return found


@pytest.mark.parametrize(("n", "blocks", "keep", "left"), [(256, 32, 0.95, 243), (100, 24, 0.9, 90), (16, 32, 0.5, 8)])
def test_a_merge_in_every_block_adds_up(n: int, blocks: int, keep: float, left: int) -> None:
    assert walk(ToMe(keep=keep), video(n), replace(HOST, blocks=blocks))[-1] == (left,)


def test_a_block_merges_half_at_most() -> None:
    assert walk(ToMe(keep=0.3), video(16), replace(HOST, blocks=2)) == [(10,), (5,)]
    with pytest.raises(ConfigError, match=r"0\.25 is the least"):
        ToMe(keep=0.1).sites(replace(HOST, blocks=2))
    assert walk(ToMe(keep=0.1), video(3, frame=1))[-1] == (1, 1, 1)  # a frame of one token has nobody to join


@pytest.mark.parametrize(("frame", "left"), [(4, 6), (6, 10)])
def test_small_frames_share_the_budget_of_their_video(frame: int, left: int) -> None:
    tokens = video(16, frame=frame)
    assert sum(tokens.budget(0.1)) == left
    assert set(tokens.budget(0.1)) == {0, 1}
    (counts,) = walk(Random(keep=0.1), tokens)
    assert counts == tokens.budget(0.1)


@pytest.mark.parametrize(
    "method",
    [
        *(DivPrune(), VisionZip(), Random(keep=0.01), FastV(ratio=0.01), ToMe(keep=0.01), Downsample(keep=0.01), OIM()),
        *(ADSC(keep=0.01), Stride(ratio=0.1, layers=(0, 4, 8)), V2Drop(ratios=(0.1, 0.1, 0.1)), SPU(ratio=0.01)),
    ],
    ids=repr,
)
def test_no_image_vanishes_by_rounding(method: Method) -> None:
    """Only a share of exactly zero withdraws all."""
    sites = method.sites(HOST)
    for after, site in zip(walk(method, video(1, 2, 3)), sites, strict=True):
        assert all(after) == (site.keep > 0)


def test_a_share_of_zero_withdraws_all() -> None:
    assert video(1, 70).budget(0.0) == (0, 0)
    assert walk(ADSC(keep=0.0), video(9))[-1] == (0,)


@quick
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.lists(st.floats(0.02, 1), min_size=1, max_size=8),
    st.data(),
)
def test_a_schedule_rounds_once(sizes: list[int], ratios: list[float], data: st.DataObject) -> None:
    """Of every clip exactly the share of what was there at the first cut is left after each."""
    lengths = [data.draw(st.integers(1, 5)) for _ in sizes]
    tokens = tokens_of(frames([(length, 1, size) for length, size in zip(lengths, sizes)]))
    start, share, stages = tokens.clip_counts, 1.0, []
    for layer, ratio in enumerate(ratios):
        share *= ratio
        stages.append((layer, share))
    for site, (_, share) in zip(Site.cascade("decoder", stages), stages, strict=True):
        before = tokens.counts
        tokens = tokens.keep_best(-tokens.index.float(), site).survivors(tokens)
        assert all(0 <= after <= n for after, n in zip(tokens.counts, before, strict=True))
        wanted = tuple(max(int(n * share + 0.5), min(n, 1)) for n in start)
        assert tokens.clip_counts == wanted
        for clip in tokens.spans.clips:  # frames of one size differ by one at most
            left = [tokens.counts[span] for span in clip]
            assert max(left) - min(left) <= 1


@pytest.mark.parametrize("schedule", ["early", "halving", "linear"])
@pytest.mark.parametrize("method", [lambda s: SPU(schedule=s), lambda s: FastV(schedule=s)], ids=["spu", "fastv"])
def test_named_schedules_do_not_drift(method: Any, schedule: Any) -> None:
    for n in (37, 100, 576):
        stages = Schedule.named(schedule, 32).stages
        for (left,), (_, share) in zip(walk(method(schedule), video(n)), stages, strict=True):
            assert left == max(int(share * n + 0.5), int(share > 0))


def test_others_in_between_are_respected() -> None:
    """Where another method has dropped tokens, a schedule goes on from those that are left, rounding once again."""
    tokens, sites = video(40), Stride(ratio=0.5, layers=(0, 1, 2, 3)).sites(HOST)
    tokens = tokens.keep_best(tokens.index.float(), sites[0]).survivors(tokens)
    tokens = tokens.keep_best(tokens.index.float(), 0.55).survivors(tokens)
    assert tokens.counts == (11,)
    left = []
    for site in sites[1:]:
        tokens = tokens.keep_best(tokens.index.float(), site).survivors(tokens)
        left += tokens.counts
    assert left == [6, 3, 1]  # 5.5, 2.75 and 1.375


@quick
@given(
    st.integers(1, 60), st.lists(st.integers(1, 60), max_size=4), st.lists(st.floats(0.05, 1), min_size=1, max_size=4)
)
def test_chunks_add_up(n: int, cuts: list[int], ratios: list[float]) -> None:
    """What an image is given in parts is what the whole would be given, at one site and over a schedule."""
    ends = sorted({0, n, *(cut for cut in cuts if cut < n)})
    share, stages = 1.0, []
    for layer, ratio in enumerate(ratios):
        share *= ratio
        stages.append((layer, share))
    seen, plain, left = [0] * len(stages), 0, 0
    for start, end in zip(ends, ends[1:]):
        plain += sum(budget((end - start,), ratios[0], (start,)))
        here = end - start
        for cut, site in enumerate(Site.cascade("decoder", stages)):
            (after,) = budget((here,), site.shares, (seen[cut],), total=(n,))
            assert 0 <= after <= here
            seen[cut], here = seen[cut] + here, after
        left += here
    whole = video(n)
    assert plain == sum(whole.budget(ratios[0]))
    for site in Site.cascade("decoder", stages):
        whole = whole.keep_best(whole.index.float(), site).survivors(whole)
    assert left == len(whole)


def test_a_schedule_after_another_method_is_a_share_of_what_that_left() -> None:
    model = tiny.model("llava")
    batch = tiny.inputs("llava", [[3, "image", 5]])
    both = Random(ratio=0.5, layer=0) + Random(schedule=((1, 0.7), (2, 0.45), (3, 0.3)))
    with torch.no_grad(), foveate.compress(model, both) as handle:
        model(**batch)
        counts = [sum(visit.after) for visit in handle.report().visits]
    assert counts == [18, 13, 8, 5]  # of 18, each rounded once


def test_spread() -> None:
    assert spread(6, [4] * 4, [4] * 4) == [2, 1, 2, 1]
    assert spread(2, [1] * 4, [1, 0, 1, 0]) == [1, 0, 1, 0]  # the third has room for what the others cannot take
    assert spread(0, [0, 0], [0, 0]) == [0, 0]


# -- what shares a budget, and a ranking --------------------------------------------------------------------------------


def decoding(counts: Sequence[int], clips: Sequence[int], row: Sequence[float], state: dict[str, Any]) -> Tokens:
    spans = replace(video(*counts).spans, clip=tuple(clips), row=(0,) * len(counts))
    tokens = replace(video(*counts), spans=spans, state=state)
    return replace(tokens, signals={"last_row": torch.tensor(row)[:, None]})


def test_dycoke_ranks_a_whole_video() -> None:
    method, row = DyCoke(decode_ratio=0.5), [1.0, 1, 1, 1, 0, 0, 0, 0]
    (site,) = method.sites(HOST)
    together = method.reduce(decoding((4, 4), (0, 0), row, {}), site)
    assert together.keep.tolist() == [0, 1, 2, 3]
    assert together.counts == (4, 0)
    apart = method.reduce(decoding((4, 4), (0, 1), row, {}), site)  # two images
    assert apart.keep.tolist() == [0, 1, 4, 5]
    assert apart.counts == (2, 2)


def test_dycoke_asks_of_a_whole_video_whether_attention_has_turned() -> None:
    method, state = DyCoke(decode_ratio=0.5, threshold=0.9), {}
    (site,) = method.sites(HOST)
    first = [1.0, 0.9, 0.1, 0, 0.05, 0, 0, 0]
    assert method.reduce(decoding((4, 4), (0, 0), first, state), site).keep.tolist() == [0, 1, 2, 4]
    small = [1.0, 0.9, 0.1, 0, 0, 0, 0, 0.2]  # the second frame has turned, the video has not
    assert method.reduce(decoding((4, 4), (0, 0), small, state), site).keep.tolist() == [0, 1, 2, 4]
    large = [0.0, 0, 0, 0, 1, 1, 1, 1]
    assert method.reduce(decoding((4, 4), (0, 0), large, state), site).keep.tolist() == [4, 5, 6, 7]


def test_dycoke_decodes_on_a_video() -> None:
    model = tiny.model("qwen2_5_vl")
    batch = tiny.inputs("qwen2_5_vl", [[3, (3, 4, 8), 5]])
    with torch.no_grad(), foveate.compress(model, DyCoke(ratio=1.0, decode_ratio=0.3)) as handle:
        model.generate(**batch, max_new_tokens=4, do_sample=False)
        (visit,) = handle.report().visits
    assert visit.before == (8, 8, 8)
    assert sum(visit.after) == 7  # of 24


def test_contextual_tokens_are_a_share_of_the_survivors_of_a_video() -> None:
    """64 of 576 are 54 and 10; of 16 frames with one survivor each, two or three are merged, not none or all; of three none."""
    method = VisionZip()
    (site,) = method.sites(HOST)
    assert method._counts(video(576), site) == ((64,), (54,), (10,))
    assert method._counts(video(27), site) == ((3,), (3,), (0,))
    _, dominant, contextual = method._counts(video(16, frame=9), site)
    assert (sum(dominant), sum(contextual)) == (13, 3)


def test_ipcv_keeps_the_budget_of_a_video() -> None:
    method = IPCV(ratio=0.35, min_tokens=0)
    tokens = replace(video(16, frame=30), signals={"residual": torch.randn(480, 3)})
    assert sum(method.reduce(tokens, method.sites(HOST)[0]).counts) == 168  # 11 each would be 176


def test_v2drop_follows_its_authors_by_host() -> None:
    llava = [(site.layer, site.keep) for site in V2Drop().sites(HOST)]
    qwen = [(site.layer, pytest.approx(site.keep)) for site in V2Drop().sites(Host("qwen2_vl", 32, 28, False))]
    assert llava == [(3, 0.5), (17, 0.5), (22, 0.0)]
    assert qwen == [(3, 0.25), (16, 0.05), (22, 0.0)]
    assert [site.keep for site in V2Drop(ratios=(0.9, 0.8, 0.5)).sites(HOST)] == pytest.approx([0.9, 0.8, 0.5])


def test_images_of_two_turns_are_not_one_clip() -> None:
    def turn(clips: tuple[int, ...], rows: tuple[int, ...]) -> Rows:
        tokens = video(*(3 for _ in clips))
        tokens = replace(tokens, spans=replace(tokens.spans, clip=clips, row=rows))
        slot = torch.arange(3).repeat(len(clips))
        return Rows(4, 4, (4, 4), tokens, torch.tensor(rows).repeat_interleave(3), slot)

    both = _joined(turn((0, 3), (0, 1)), turn((1,), (1,))).tokens
    assert both.spans.clips == ((0,), (1,), (2,))
    assert both.budget(0.1) == (1, 1, 1)


def test_cuts_of_another_method_are_not_a_schedules_own() -> None:
    """Ten tokens: half before layer 1, half of these before layer 2 by another method, half of what is left before layer 3."""
    model, batch = tiny.model("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", [[3, (4, 10), 5]])
    both = foveate.Stride(layers=(1, 3)) + foveate.FastV(layer=2)
    with torch.no_grad(), foveate.compress(model, both) as handle:
        model(**batch)
        assert [visit.after for visit in handle.report().visits] == [(5,), (3,), (2,)]
