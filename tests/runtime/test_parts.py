"""The runtime's parts against plain loops: masks by kind, renumbering, cache indices, layouts, merging a constant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from calls import close
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import ToMe

from foveate import Host
from foveate.ops.segments import offsets
from foveate.runtime.cache import KVIndex
from foveate.runtime.layout import Rows, frames, tokens_of
from foveate.runtime.masks import View, derive
from foveate.runtime.positions import renumbered
from foveate.tokens import Reduction

quick = settings(max_examples=60, deadline=None)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Rows, list[list[int]]]:
    """A batch of rows with images in them, some of whose tokens have left; and what is left of each row."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(6, 14))
    grid, rows, places = [], [], []
    for b in range(batch):
        at = draw(st.integers(0, 2))
        while at + 4 <= length - 1 and draw(st.booleans()):
            grid.append((1, 2, 2))
            rows.append(b)
            places += [(b, at + i) for i in range(4)]
            at += 4 + draw(st.integers(0, 2))
    tokens = tokens_of(frames(grid, rows))
    place = torch.tensor(places, dtype=torch.long).view(-1, 2)
    layout = Rows(length, length, (length,) * batch, tokens, place[:, 0], place[:, 1])
    keep, counts = [], []
    for start, end in zip(offsets(tokens.counts), offsets(tokens.counts)[1:]):
        chosen = [i for i in range(start, end) if draw(st.booleans())]
        keep += chosen
        counts.append(len(chosen))
    reduced, _ = layout.reduce(Reduction(torch.tensor(keep, dtype=torch.long), tuple(counts)))
    gone = {places[i] for i in range(len(places)) if i not in keep}
    return reduced, [[p for p in range(length) if (b, p) not in gone] for b in range(batch)]


def present(layout: Rows, row: int) -> list[int]:
    index = torch.arange(layout.width).expand(len(layout.lengths), -1) if layout.index is None else layout.index
    valid = torch.ones_like(index, dtype=torch.bool) if layout.valid is None else layout.valid
    return index[row][valid[row]].tolist()


@quick
@given(layouts())
def test_reducing_rows(case: tuple[Rows, list[list[int]]]) -> None:
    layout, left = case
    for row, expected in enumerate(left):
        assert present(layout, row) == expected
    x = torch.arange(float(layout.full)).expand(len(left), -1)[..., None]
    index = layout.index if layout.index is not None else torch.arange(layout.width).expand(len(left), -1)
    held = x.gather(1, index[..., None])
    for token, (row, slot) in enumerate(zip(layout.row.tolist(), layout.slot.tolist())):
        assert layout.pick(held)[token] == held[row, slot]
        assert int(index[row, slot]) in left[row]
    back = layout.scatter(held, fill=-1.0)
    for row, expected in enumerate(left):
        assert [p for p in range(layout.full) if back[row, p, 0] == p] == expected


@quick
@given(layouts(), st.integers(0, 5), st.sampled_from([None, 3]))
def test_masks_of_every_kind_agree(case: tuple[Rows, list[list[int]]], past: int, window: int | None) -> None:
    layout, left = case
    if layout.index is None:
        return
    batch, total = len(left), past + layout.full
    q, k = torch.arange(past, total)[:, None], torch.arange(total)
    stock = (k <= q) if window is None else (k <= q) & (k > q - window)
    cached = torch.arange(past).expand(batch, -1)
    valid = None if layout.valid is None else torch.cat([torch.ones(batch, past, dtype=torch.bool), layout.valid], 1)
    keys = View(torch.cat([cached, layout.index + past], 1), valid)
    queries = View(layout.index, layout.valid)
    ours = derive(stock[None, None], queries, keys, total, past, "bool", torch.float32)
    floats = torch.zeros(batch, 1, *stock.shape).masked_fill(~stock, torch.finfo(torch.float32).min)
    assert torch.equal(derive(floats, queries, keys, total, past, "float", torch.float32) == 0, ours)
    for b in range(batch):
        for i, p in enumerate(layout.index[b].tolist()):
            if layout.valid is not None and not layout.valid[b, i]:
                continue
            seen = keys.index[b][ours[b, 0, i]].tolist()
            expected = [*range(past), *(past + j for j in left[b])]
            assert seen == [j for j in expected if j <= p + past and (window is None or j > p + past - window)]
    if window is None:
        built = derive(None, queries, keys, total, past, "bool", torch.float32)
        real = torch.ones_like(layout.index, dtype=torch.bool) if layout.valid is None else layout.valid
        if built is not None:
            assert torch.equal(built.expand_as(ours)[:, 0][real], ours[:, 0][real])
    padding = torch.ones(batch, total, dtype=torch.long)
    padding[:, :1] = 0
    flat = derive(padding, queries, keys, total, past, "keys", torch.float32)
    assert flat.shape == keys.index.shape
    assert torch.equal(flat.bool(), (keys.index > 0) & (torch.ones_like(flat).bool() if valid is None else valid))
    part = stock[:, total - layout.full :] if window else stock  # a sliding layer's mask begins later
    cut = derive(part[None, None], queries, keys, total, past, "bool", torch.float32)
    inside = keys.index >= total - part.shape[-1]
    assert torch.equal(cut, ours & inside[:, None, None])


@quick
@given(layouts())
def test_renumbering_with_one_axis_counts_the_tokens(case: tuple[Rows, list[list[int]]]) -> None:
    layout, left = case
    ids = torch.arange(layout.full).expand(1, len(left), -1)
    new, shift = renumbered(ids, layout, None)
    valid = torch.ones_like(new[0], dtype=torch.bool) if layout.valid is None else layout.valid
    for row, expected in enumerate(left):
        assert new[0, row][valid[row]].tolist() == list(range(len(expected)))
        assert int(shift[row]) == layout.full - len(expected)


@quick
@given(layouts(), st.lists(st.integers(1, 3), max_size=3), st.data())
def test_cache_index_follows_every_change(
    case: tuple[Rows, list[list[int]]], steps: list[int], data: st.DataObject
) -> None:
    layout, left = case
    kv = KVIndex(2, 2).append_rows(layout, None, keep_visual=False)
    expected = [[0, 1, *(2 + p for p in row)] for row in left]
    total = 2 + layout.full
    for n in steps:
        kv = kv.append(n)
        expected = [[*row, *range(total, total + n)] for row in expected]
        total += n

    def check(index: KVIndex, rows: list[list[int]]) -> None:
        view = index.view(len(rows), torch.device("cpu"))
        assert view.index.shape[1] == index.length
        for row, want in enumerate(rows):
            held = view.index[row] if view.valid is None else view.index[row][view.valid[row]]
            assert held.tolist() == want

    check(kv, expected)
    remove = data.draw(st.integers(0, total))
    cropped, freed = kv.crop(remove)
    assert cropped.total == total - remove
    assert cropped.length == kv.length - freed
    check(cropped, [[p for p in row if p < total - remove] for row in expected])
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(left) - 1), min_size=1, max_size=4)))
    chosen = kv.select(rows)
    assert kv.select(rows) is chosen
    check(chosen, [expected[r] for r in rows.tolist()])


def test_keeping_by_mask_counts_each_span() -> None:
    tokens = tokens_of(frames([(1, 2, 3), (2, 1, 4)]))
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    reduction = tokens.keep_mask(mask)
    assert reduction.counts == (3, 0, 4)
    assert reduction.keep.tolist() == mask.nonzero().flatten().tolist()


@pytest.mark.parametrize("keep", [0.5, 0.7])
def test_merging_a_constant_image_gives_the_constant(keep: float) -> None:
    """Invariant 9, for the method that merges by weighted mean: also with sizes that differ already."""
    method = ToMe(keep=keep)
    tokens = tokens_of(frames([(1, 4, 4), (2, 3, 2)]))
    constant = torch.arange(1.0, 9.0).expand(len(tokens), -1)
    keys = torch.randn(len(tokens), 2, 6)
    tokens = replace(tokens, hidden=constant, sizes=1 + torch.rand(len(tokens)), signals={"keys": keys})
    reduction = method.reduce(tokens, method.sites(Host("llava", 1, 4, True))[0])
    assert reduction.hidden is not None
    assert reduction.sizes is not None
    close(reduction.hidden, constant[: len(reduction.hidden)], 1e-6)
    close(reduction.sizes.sum(), tokens.sizes.sum(), 1e-6)
