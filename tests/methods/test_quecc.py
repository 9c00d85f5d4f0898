"""Windows of an image, and what their queries read of them, against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveate
from foveate import QueCC
from foveate.handle import host_of
from foveate.methods.quecc import HEADS, SIDE
from foveate.ops.grid import windows
from foveate.training.relaxed import Relaxed, Tape

ROWS: list[list[tiny.Item]] = [[3, "image", 5, "image", 2], [2, "image", 4]]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3), st.data())
def test_windows_are_rectangles_and_none_is_empty(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    counts = [h * w for h, w in shapes]
    k = [data.draw(st.integers(0, n)) for n in counts]
    index = torch.cat([torch.arange(n) for n in counts])
    window, place = windows(index, counts, shapes, k, SIDE)
    start, base = 0, 0
    for (height, width), n, kept in zip(shapes, counts, k):
        own = window[start : start + n]
        if kept == 0:
            assert set(own.tolist()) == {sum(k)}
        else:
            assert sorted(set(own.tolist())) == list(range(base, base + kept))
        for each in set(own.tolist()) if kept else ():
            y, x = (own.view(height, width) == each).nonzero().unbind(1)
            assert len(y) == len(set(y.tolist())) * len(set(x.tolist()))
            cells = place[start : start + n][own == each]
            assert ((cells >= 0) & (cells < SIDE * SIDE)).all()
        start, base = start + n, base + kept
    gone, _ = windows(torch.tensor([0, 1, 4, 7, 8]), [5], [(3, 3)], [2], SIDE)
    assert gone.tolist() == [0, 0, 0, 1, 1]
    whole, cell = windows(torch.arange(64), [64], [(8, 8)], [4], SIDE)
    assert torch.equal(cell.view(8, 8)[:4, :4], torch.arange(16).view(4, 4))
    assert whole.view(8, 8)[::4, ::4].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("family", tiny.WHOLE)
def test_a_query_reads_its_own_window(family: str) -> None:
    model: Any = tiny.model(family)
    method, seen = QueCC(keep=0.3), []
    parts = method.modules(host_of(model))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    class Seen(Relaxed):
        def answer(self, tokens: foveate.Tokens, site: foveate.Site) -> Any:
            seen.append((tokens, super().answer(tokens, site), site))
            return seen[-1][1]

    with (
        torch.no_grad(),
        foveate.compress(model, Seen.of(method, parts, method.stages[0], host_of(model), Tape())),
    ):
        model(**tiny.inputs(family, ROWS))
    tokens, answer, site = seen[0]
    last = torch.tensor(tokens.text_counts).cumsum(0) - 1
    window, place = windows(tokens.index, tokens.counts, tokens.spans.shape, answer.counts, SIDE)
    read = torch.cat([tokens.signal(each) for each in site.asked[1:]], 1)
    for number, k in enumerate(answer.keep.tolist()):
        members = (window == number).nonzero().flatten()
        assert k == int(members[0])
        x = parts["token"](tokens.hidden[members]) + parts["text"](tokens.text_pass[last[tokens.sample[k]]])
        query = (parts["query"](x) * parts["kernel"](place[members])).mean(0)
        key, value = parts["key"](read[members]), parts["value"](read[members])
        said = []
        for q, keys, values in zip(query.chunk(HEADS), key.chunk(HEADS, 1), value.chunk(HEADS, 1)):
            said.append((keys @ q / len(q) ** 0.5).softmax(0) @ values)
        expected = tokens.hidden[members].mean(0) + parts["out"](torch.cat(said))
        torch.testing.assert_close(answer.hidden[number], expected, rtol=1e-4, atol=1e-4)
