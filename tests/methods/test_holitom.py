"""HoliTom: windows by brute force, both merges by plain loops and golden values, and what it is on images."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import tiny
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packed import tokens_at

import foveate
from foveate import HoliTom, Host, Site, Tokens
from foveate.errors import ConfigError, FoveateError
from foveate.handle import host_of
from foveate.ops import standstill
from foveate.ops.frames import cosine_with
from foveate.runtime.layout import frames as spans_of
from foveate.runtime.layout import tokens_of
from foveate.serving.plan import make_plan

HOST = Host("qwen2_5_vl", blocks=32, layers=28, has_cls=False, frames=frozenset({"tower_output", "decoder"}))
quick = settings(max_examples=30, deadline=None)
videos = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=2)


def in_windows(n: int, cuts: tuple[int, ...]) -> list[tuple[int, int]]:
    starts = [0, *(f for f in range(1, n) if cuts[f - 1])]
    return [(a, b - 1) for a, b in zip(starts, [*starts[1:], n])]


def windows_of(video: torch.Tensor, cut: standstill.Cut, threshold: float) -> list[tuple[int, int]]:
    """Of one video alone, ``(F, P)``."""
    first = cut(video.flatten(), [video.shape[1]] * len(video), [len(video)], threshold).tolist()
    return in_windows(len(first), tuple(int(first[f] == f) for f in range(1, len(first))))


@quick
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(0, 1000),
    st.sampled_from([0.3, 0.6, 0.9]),
)
def test_windows_save_as_much_as_any(sizes: list[tuple[int, int]], seed: int, threshold: float) -> None:
    """Of several videos at once; of windows that save as many, later frames are in the shorter ones."""
    generator, first = torch.Generator().manual_seed(seed), 0
    videos = [torch.rand(n, p, generator=generator) for n, p in sizes]
    cells = [p for n, p in sizes for _ in range(n)]
    packed = torch.cat([video.flatten() for video in videos])
    found = standstill.stillest(packed, cells, [n for n, _ in sizes], threshold)
    for alike in videos:
        n = len(alike)

        def saved(windows: list[tuple[int, int]], alike: torch.Tensor = alike) -> int:
            return sum((b - a) * int((alike[a + 1 : b + 1] > threshold).all(0).sum()) for a, b in windows if b > a)

        ways = [in_windows(n, cuts) for cuts in product((0, 1), repeat=n - 1)]
        most = max(map(saved, ways))
        of_last_first = [[b - a for a, b in way[::-1]] for way in ways if saved(way) == most]
        starts = (found[first : first + n] - first).tolist()
        windows = in_windows(n, tuple(int(starts[f] == f) for f in range(1, n)))
        assert starts == [a for a, b in windows for _ in range(a, b + 1)]
        assert [b - a for a, b in windows[::-1]] == min(of_last_first)
        assert windows == windows_of(alike, standstill.stillest, threshold)
        first += n


def clear(values: list[float], limit: float = 1e-5) -> None:
    """Take no example in which rounding decides: two values are the same, or they are not nearly the same."""
    values = sorted(values)
    assume(all(not 1e-12 < b - a < limit for a, b in zip(values, values[1:])))


def test_rounding_is_no_reason_to_stand_still() -> None:
    """Not above a threshold are those that equal it in their type, on average too; nor above 1 those of equal tokens."""
    alike = torch.tensor([-1.0, -1.0, 0.8, 0.8])
    for cut in (standstill.runs, standstill.stillest):
        assert cut(alike, [2, 2], [2], 0.8).tolist() == [0, 1]
        assert cut(alike, [2, 2], [2], 0.79).tolist() == [0, 0]
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    assert cosine_with(x, torch.arange(64), missing=-1.0).max() <= 1.0


def around(x: list[torch.Tensor], k: int) -> tuple[list[int], list[int]]:
    """The centres among some tokens, by density peaks, and the centre of each."""
    if not k:
        return [], []
    away = [[float((a - b).norm()) / len(a) ** 0.5 for b in x] for a in x]
    near = min(7, k)
    dense = [2.718281828459045 ** -(sum(each**2 for each in sorted(row)[:near]) / near) for row in away]
    clear(dense, 1e-6)
    order = sorted(range(len(x)), key=lambda i: (-round(dense[i], 9), i))
    widest = max(map(max, away))
    way = {i: min((away[i][j] for j in order[:rank]), default=widest) for rank, i in enumerate(order)}
    clear([way[i] * dense[i] for i in way])
    centres = sorted(sorted(range(len(x)), key=lambda i: (-round(way[i] * dense[i], 9), i))[:k])
    return centres, [i if i in centres else min(centres, key=lambda c, i=i: away[i][c]) for i in range(len(x))]


def by_hand(
    tokens: Tokens, received: list[float], method: HoliTom, shares: dict[tuple[int, int], int], target: list[int]
) -> dict[int, torch.Tensor]:
    """Survivors and their values: ``target`` is what each token merges into over time, ``shares`` what groups may keep."""
    members: dict[int, list[int]] = {}
    for i, into in enumerate(target):
        members.setdefault(into, []).append(i)
    mean = {i: tokens.hidden[each].double().mean(0) for i, each in members.items()}
    segment, found = tokens.segment.tolist(), {}
    context = method.contextual or 0.0
    for (span, moves), k in shares.items():
        group = [i for i in members if segment[i] == span and (len(members[i]) == 1) == bool(moves)]
        best = int((1 - context) * k + 0.5) if moves else 0
        ranked = sorted(group, key=lambda i: (-received[i], i))[:best]
        rest = [i for i in sorted(group) if i not in ranked]
        centres, of = around([mean[i] for i in rest], k - best)
        found |= {i: mean[i] for i in ranked}
        for c in centres:
            others = [mean[rest[i]] for i in range(len(rest)) if of[i] == c and i != c]
            own = mean[rest[c]]
            found[rest[c]] = 0.6 * own + 0.4 * torch.stack(others).mean(0) if others else own
    return dict(sorted(found.items()))


@quick
@given(
    videos, st.integers(0, 1000), st.sampled_from([0.2, 0.5, 0.8, 1.0]), st.sampled_from([0.0, 0.4, 1.0]), st.booleans()
)
def test_what_stands_still_by_loops(grid: Any, seed: int, keep: float, context: float, similar: bool) -> None:
    """Ragged videos of few different cells, so that many stand still and many are equal."""
    tokens, generator = tokens_at(grid, seed), torch.Generator().manual_seed(seed)
    tokens = tokens.select((tokens.segment * 100 + tokens.index).argsort(), tokens.counts)
    kinds = torch.randn(3, 6, generator=generator)[torch.randint(0, 3, (len(tokens),), generator=generator)]
    tokens = replace(tokens, hidden=kinds + 0.15 * torch.randn(len(tokens), 6, generator=generator))
    received = torch.randint(0, 4, (len(tokens),), generator=generator).float()
    method = HoliTom(contextual=context, segments="similarity" if similar else "optimal", tau=0.5 if similar else 0.8)
    reduction = method.reduce(replace(tokens, signals={"received": received}), Site.output(keep))

    kept, target, shares, start = tokens.pool_budget(keep), list(range(len(tokens))), {}, 0
    for clip, budget in zip(tokens.spans.clips, kept):
        n, cells = len(clip), tokens.counts[clip[0]]
        x = tokens.hidden[start : start + n * cells].view(n, cells, -1)
        alike = torch.cosine_similarity(x[1:], x[:-1], dim=-1)
        first = torch.full((1, cells), -1.0)
        windows = windows_of(torch.cat([first, alike]), standstill.runs if similar else standstill.stillest, method.tau)
        still = [(float(alike[a:b, p].min()), a, b, p) for a, b in windows if b > a for p in range(cells)]
        clear([*alike.flatten().tolist(), *alike.mean(1).tolist(), method.tau], 1e-6)
        spare = n * cells - budget
        for least, a, b, p in sorted(still, key=lambda each: -each[0]):
            if least <= method.tau:
                continue
            spare -= b - a
            if spare < 0:
                break
            for f in range(a + 1, b + 1):
                target[start + f * cells + p] = start + a * cells + p
        sizes = []
        for f, span in enumerate(clip):
            own = [i for i in range(start + f * cells, start + (f + 1) * cells) if target[i] == i]
            sizes += [
                (span, 0, sum(target.count(i) > 1 for i in own)),
                (span, 1, sum(target.count(i) == 1 for i in own)),
            ]
        whole, end, given_ = sum(size for _, _, size in sizes), 0, 0
        for span, moves, size in sizes:
            end += size
            shares[span, moves] = int(budget * end / whole + 0.5) - given_
            given_ += shares[span, moves]
        start += n * cells
    expected = by_hand(tokens, received.tolist(), method, shares, target)
    assert reduction.keep.tolist() == list(expected)
    assert len(expected) == sum(kept)
    assert reduction.hidden is not None
    torch.testing.assert_close(reduction.hidden, torch.stack(list(expected.values())).float(), rtol=1e-4, atol=1e-5)


@quick
@given(videos, st.integers(0, 1000), st.sampled_from([0.1, 0.5, 0.9]))
def test_the_merge_in_the_decoder_by_loops(grid: Any, seed: int, keep: float) -> None:
    """A whole video is ranked at once; what leaves is averaged into the most similar survivor, one after another."""
    tokens = tokens_at(grid, seed)
    row = torch.randint(0, 4, (len(tokens), 2), generator=torch.Generator().manual_seed(seed)).float()
    reduction = HoliTom().reduce(replace(tokens, signals={"last_row": row}), Site.decoder(3, keep))
    score, start, expected = row.mean(1).tolist(), 0, {}
    for n, k in zip(tokens.pool_counts, tokens.pool_budget(keep)):
        ranked = sorted(range(start, start + n), key=lambda i: (-score[i], i))
        best, x = sorted(ranked[:k]), tokens.hidden
        own = {i: x[i] for i in best}
        for i in range(start, start + n):
            if i not in best:
                j = max(best, key=lambda j, i=i: float(torch.cosine_similarity(x[i], x[j], dim=0)))
                own[j] = (own[j] + x[i]) / 2
        expected |= own
        start += n
    assert reduction.keep.tolist() == sorted(expected)
    torch.testing.assert_close(reduction.hidden, torch.stack([expected[i] for i in sorted(expected)]))


def three_frames() -> Tokens:
    """Three cells: one stands still in three frames, one in the first two, one moves."""
    cells = torch.tensor(
        [
            [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
            [[1.0, 0.1], [0.1, 1.0], [1.0, -1.0]],
            [[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0]],
        ]
    )
    tokens = tokens_of(spans_of([(3, 1, 3)]))
    return replace(
        tokens, hidden=cells.flatten(0, 1), signals={"received": torch.tensor([0.0, 0, 1, 0, 0, 2, 0, 4, 3])}
    )


def test_golden_values() -> None:
    """Of nine, two cells in two frames save two, or one in three frames; the first, shorter windows are taken."""
    method = HoliTom(segments="optimal")
    reduction = method.reduce(three_frames(), Site.output(7 / 9))
    assert reduction.keep.tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert reduction.groups().tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6]
    torch.testing.assert_close(reduction.hidden[:2], torch.tensor([[1.0, 0.05], [0.05, 1.0]]))
    assert reduction.sizes.tolist() == [2, 2, 1, 1, 1, 1, 1]
    few = method.reduce(three_frames(), Site.output(4 / 9))
    assert few.counts == (2, 0, 2), "in proportion: of two still cells one is a centre, of each frame the best move"
    assert len(method.reduce(three_frames(), Site.output(8 / 9)).keep) == 8, "no more is merged than has to be"
    assert torch.equal(method.reduce(three_frames(), Site.output(1.0)).hidden, three_frames().hidden)
    alone = HoliTom(segments="none").reduce(three_frames(), Site.output(1 / 3))
    assert alone.keep.tolist() == [2, 5, 7], "frame by frame, by attention"


def test_where_it_acts() -> None:
    assert [(site.at, site.layer) for site in HoliTom().sites(HOST)] == [("tower_output", 0), ("decoder", 18)]
    assert HoliTom().mean(HOST) == pytest.approx(0.15 * (18 + 5) / 28)
    later = replace(HOST, frames=frozenset({"lm_entry", "decoder"}))
    first = HoliTom().sites(later)[0]
    assert (first.at, first.asked) == ("lm_entry", ())
    with pytest.raises(FoveateError, match=r"lm_entry has no attention: contextual=0.5 has to be 1"):
        HoliTom(contextual=0.5).sites(later)
    for options in ({"tau": 1.5}, {"beta": -0.1}, {"contextual": 2.0}):
        with pytest.raises(ConfigError, match=r"is not a (limit for cosines|share): give 0.0 to 1.0"):
            HoliTom(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_video_is_merged_over_time(family: str) -> None:
    """Frames that are all alike leave one: the survivors of each video are in its first frame."""
    model = tiny.model(family)
    batch = tiny.inputs(family, tiny.GROUP[family].VIDEO_ROWS[family][:1])
    pixels = next(name for name in batch if name.startswith("pixel_values_videos"))
    still = batch | {pixels: torch.ones_like(batch[pixels])}
    with torch.no_grad(), foveate.compress(model, HoliTom(keep=0.4, tau=0.7)) as handle:
        model(**batch)
        shares = [handle.report().shares["tokens"]]
        model(**still)
        visit, report = handle.report().visits[0], handle.report()
        shares.append(report.shares["tokens"])
    assert shares == pytest.approx([0.4, 0.4], abs=0.06)
    assert visit.after[0] > sum(visit.after[1:])


def test_images_and_unknown_frames() -> None:
    """By default each is a video of one frame; what is asked of frames is refused where they are not known."""
    for family in ("llava", "glm4v"):
        model = tiny.model(family)
        assert HoliTom().resolve(host_of(model)) == HoliTom(segments="none")
        with foveate.compress(model, HoliTom()) as handle:
            assert handle.method == HoliTom()
        with pytest.raises(FoveateError, match=r"holitom compares frames of one video, and in .* known nowhere"):
            foveate.compress(model, HoliTom(segments="optimal"))


def test_an_engine_refuses_it() -> None:
    family: Any = foveate.list_families()["qwen2_5_vl"]
    with pytest.raises(ConfigError, match="holitom decides by the content of an image how many tokens stay"):
        make_plan(HoliTom(), HOST, family, tiny.config("qwen2_5_vl"))
