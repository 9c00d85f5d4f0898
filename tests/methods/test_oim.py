"""The merger against plain loops, and where its merged tokens end up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import grids, tokens_at
from torch import Tensor

import foveate
from foveate import LUVC, OIM, FoveateError, Host, Reduction, Site, Stride, Tokens
from foveate.methods.oim import Pass
from foveate.runtime.layout import frames, tokens_of
from foveate.runtime.positions import places_of, rotary_at

quick = settings(max_examples=40, deadline=None)
HOST = Host("qwen2_vl", blocks=4, layers=8, has_cls=False)
passes = st.lists(
    st.tuples(st.just(1), st.sampled_from(["width", "height"]), st.floats(0.5, 1)), min_size=1, max_size=4
).map(tuple)
Cell = dict[str, Any]


def merge_line(line: list[Cell], merges: int, weighted: bool) -> list[Cell]:
    """Odd cells join the nearer neighbour, the most similar first."""
    wishes = []
    for odd in range(1, len(line), 2):
        sides = [odd - 1] + ([odd + 1] if odd + 1 < len(line) else [])
        likeness = [float(torch.cosine_similarity(line[odd]["key"], line[even]["key"], dim=0)) for even in sides]
        best = max(range(len(sides)), key=lambda i: likeness[i])
        wishes.append((-likeness[best], odd, sides[best]))
    joined = {odd: even for _, odd, even in sorted(wishes)[:merges]}
    found = []
    for i in range(len(line)):
        if i in joined:
            continue
        members = [line[i], *(line[odd] for odd, even in joined.items() if even == i)]
        weights = [m["size"] if weighted else 1.0 for m in members]
        cell = {
            name: sum(w * m[name] for w, m in zip(weights, members)) / sum(weights) for name in ("key", "hidden", "at")
        }
        found.append({**cell, "size": sum(m["size"] for m in members)})
    return found


def merge_grid(rows: list[list[Cell]], axis: str, share: float, weighted: bool) -> list[list[Cell]]:
    if axis == "height":
        columns = [list(column) for column in zip(*rows)]
        return [list(row) for row in zip(*merge_grid(columns, "width", share, weighted))]
    n = len(rows[0])
    return [merge_line(row, n - int(share * n + 0.5), weighted) for row in rows]


@quick
@given(grids, passes, st.integers(0, 1000), st.booleans())
def test_the_merger_by_loops(
    grid: list[tuple[int, int, int]], passes: tuple[Pass, ...], seed: int, weighted: bool
) -> None:
    tokens = tokens_at(grid, seed)
    method = OIM(passes=passes, similarity="keys", weighted=weighted)
    (site,) = method.sites(HOST)
    reduction = method.reduce(tokens, site)
    after = reduction.survivors(tokens)
    assert reduction.keep.tolist() == sorted(set(reduction.keep.tolist()))
    for span, (height, width) in enumerate(tokens.spans.shape):
        here = (tokens.segment == span).nonzero().flatten()
        cells = {
            int(tokens.index[i]): {
                "key": tokens.keys[i].mean(0),
                "hidden": tokens.hidden[i],
                "at": tokens.coords[i],
                "size": float(tokens.sizes[i]),
            }
            for i in here
        }
        rows = [[cells[y * width + x] for x in range(width)] for y in range(height)]
        for _, axis, share in passes:
            rows = merge_grid(rows, axis, share, weighted)
        # A rectangle is left, of evenly spaced rows and columns; its cells are the merged ones in order.
        mine = (after.segment == span).nonzero().flatten()
        mine = mine[after.index[mine].argsort()]
        assert len(mine) == after.counts[span] == len(rows) * len(rows[0])
        index = after.index[mine].view(len(rows), len(rows[0]))
        ys, xs = (index // width)[:, 0], (index % width)[0]
        assert torch.equal(index, ys[:, None] * width + xs)
        flat = [cell for row in rows for cell in row]
        torch.testing.assert_close(after.hidden[mine], torch.stack([cell["hidden"] for cell in flat]))
        torch.testing.assert_close(after.coords[mine], torch.stack([cell["at"] for cell in flat]))
        assert after.sizes[mine].tolist() == [cell["size"] for cell in flat]
        assert float(after.sizes[mine].sum()) == float(tokens.sizes[here].sum())


@quick
@given(grids, passes, st.booleans())
def test_a_constant_image_stays_constant(
    grid: list[tuple[int, int, int]], passes: tuple[Pass, ...], shared: bool
) -> None:
    tokens = tokens_at(grid, 0)
    same = torch.tensor([1.7, -2.3, 0.1])
    tokens = replace(tokens, hidden=same.expand(len(tokens), -1))
    method = OIM(passes=passes, similarity="hidden", shared=shared)
    (site,) = method.sites(HOST)
    hidden = method.reduce(tokens, site).hidden
    assert hidden is not None
    torch.testing.assert_close(hidden, same.expand(len(hidden), -1))


@quick
@given(grids, st.floats(0.25, 1))
def test_the_share_is_met_as_far_as_whole_lines_allow(grid: list[tuple[int, int, int]], share: float) -> None:
    tokens = tokens_at(grid, 0)
    (site,) = OIM(keep=share).sites(HOST)
    reduction = OIM(keep=share).reduce(tokens, site)
    for (height, width), count in zip(tokens.spans.shape, reduction.counts):
        narrow = int(width * share**0.5 + 0.5)
        rows = [n for n in range(1, height + 1) if 2 * n >= height]
        nearest = min(abs(n * narrow - share * height * width) for n in rows)
        assert count % narrow == 0
        assert abs(count - share * height * width) <= nearest + 1e-6


def test_one_line_less_where_a_tenth_leaves() -> None:
    tokens = tokens_at([(1, 10, 10)], 0)
    (site,) = OIM(keep=0.9).sites(HOST)
    assert OIM(keep=0.9).reduce(tokens, site).counts == (90,)


@quick
@given(grids, st.integers(0, 1000), st.sampled_from(["width", "height"]))
def test_one_choice_for_all_lines(grid: list[tuple[int, int, int]], seed: int, axis: Any) -> None:
    tokens = tokens_at(grid, seed)
    tokens = replace(tokens, sizes=torch.ones(len(tokens)))
    method = OIM(passes=((1, axis, 0.6),), shared=True)
    (site,) = method.sites(HOST)
    after = method.reduce(tokens, site).survivors(tokens)
    across, along = (1, 2) if axis == "width" else (2, 1)
    for span in range(len(after.counts)):
        coords = after.coords[after.segment == span]
        places = [
            sorted(coords[coords[:, across] == line, along].tolist())
            for line in sorted(set(coords[:, across].tolist()))
        ]
        assert all(line == places[0] for line in places)


def test_passes_in_several_blocks_are_passes_in_one() -> None:
    """With the same features, what blocks do one after the other is what one block does at once."""
    tokens = tokens_at([(1, 6, 7), (2, 3, 5)], 3)
    at_once: tuple[Pass, ...] = ((1, "width", 0.7), (1, "height", 0.6), (1, "width", 0.8))
    spread = tuple((block, axis, share) for block, (_, axis, share) in enumerate(at_once, 1))
    methods = [OIM(passes=each, similarity="hidden") for each in (at_once, spread)]
    found = []
    for method in methods:
        here = tokens
        for site in method.sites(HOST):
            here = method.reduce(here, site).survivors(here)
        found.append(here)
    assert found[0].counts == found[1].counts
    for name in ("index", "hidden", "sizes", "coords"):
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name))


def test_a_line_of_one_is_never_shortened() -> None:
    tokens = tokens_at([(1, 1, 5), (1, 4, 1), (1, 1, 1)], 0)
    method = OIM(passes=((1, "width", 0.5),) * 4 + ((1, "height", 0.5),) * 4)
    (site,) = method.sites(HOST)
    assert method.reduce(tokens, site).counts == (1, 1, 1)


@dataclass(frozen=True)
class Holes(Stride):
    """Test only: every other token leaves before vision block 1."""

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("tower", 1, 0.5)]


def test_what_is_no_rectangle_cannot_be_merged(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, [[3, "image", 5]])
    before = tiny.text_logits(model, batch)
    with foveate.compress(model, Holes() + LUVC()), pytest.raises(FoveateError, match="fill a rectangle"):
        model(**batch)
    assert torch.equal(tiny.text_logits(model, batch), before)


# -- positions -------------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(2, 3), st.integers(0, 1000))
def test_rotary_rows_at_any_place(side: int, seed: int) -> None:
    """Angles of a tower's rows: y and x of the patch times falling frequencies."""
    generator = torch.Generator().manual_seed(seed)
    shape, frequency = (3, 4), 10_000 ** -(torch.arange(4) / 4)
    inner = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    unit = torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1]))
    unit = unit[torch.randperm(len(unit), generator=generator)]  # windows may come in any order

    def angle(corner: Tensor) -> Tensor:
        place = (corner[:, None] + inner).flatten(0, 1).float()  # (R, 2)
        return (place[..., None] * frequency).flatten(1).repeat(1, 2)

    def table(corner: Tensor) -> tuple[Tensor, Tensor]:
        return angle(corner).cos(), angle(corner).sin()

    keep = torch.randperm(len(unit), generator=generator)[:5].sort().values
    moved = torch.rand(5, 2, generator=generator) * 3 - 1.5
    rows = (keep[:, None] * side**2 + torch.arange(side**2)).flatten()
    patches, steps = (moved * side).repeat_interleave(side**2, dim=0), ((0, side), (0, 1))
    found = rotary_at(table(unit * side), rows, patches, steps)
    expected = table((unit[keep] + moved) * side)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    angles = rotary_at(angle(unit * side), rows, patches, steps)  # as older towers pass them
    torch.testing.assert_close(angles.cos(), expected[0], rtol=1e-4, atol=1e-4)


@dataclass(frozen=True)
class Watched(OIM):
    """Test only: remembers what it decided."""

    seen: ClassVar[list[tuple[Tokens, Reduction]]] = []

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        self.seen.append((tokens, super().reduce(tokens, site)))
        return self.seen[-1][1]


def rotary_of_layers(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """Cosines that the first attention of the decoder gets, ``(tokens, d)`` of each row."""
    found: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        cos = kwargs["position_embeddings"][0]
        found.append(cos.movedim(0, -2).flatten(-2) if cos.dim() == 4 else cos)  # M-RoPE before 5.18: an axis each

    layer = tiny.of_attention(model.config.model_type, tiny.lm(model).layers)[0]
    hook = layer.self_attn.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return list(found[0])


def test_renumbered_is_a_smaller_image(family: str) -> None:
    """`renumber` gives the rectangle the positions that the stock model gives an image of that size."""
    big, small, plan = (8, 12), (6, 8), ((1, "width", 0.7), (1, "height", 0.7))  # patches: 4 x 6 tokens become 3 x 4
    model = tiny.model(family)
    if family not in tiny.PACKED:
        pytest.skip("its images have one size; 1-D renumbering is tested with the layouts")
    method = OIM(passes=plan, positions="renumber")  # type: ignore[arg-type]
    with foveate.compress(model, method):
        found = rotary_of_layers(model, tiny.inputs(family, [[3, big, 5]]))
    wanted = rotary_of_layers(model, tiny.inputs(family, [[3, small, 5]]))
    torch.testing.assert_close(found[0], wanted[0])


def test_kept_is_the_centroid(family: str) -> None:
    """With positions kept, a merged token takes the position id of the cell where the middle of its members is."""
    if family in tiny.tiles.ANYRES:
        pytest.skip("an image is several spans there; test_tiles follows merged tokens through tiles")
    model = tiny.model(family)
    batch = tiny.inputs(family, [[3, (8, 8) if family in (*tiny.tiles.JOINED, *tiny.gemma4.FAMILIES) else "image", 5]])
    stock = rotary_of_layers(model, batch)[0]
    Watched.seen.clear()
    with foveate.compress(model, Watched(keep=0.5)):
        found = rotary_of_layers(model, batch)[0]
    ((tokens, reduction),) = Watched.seen
    after = reduction.survivors(tokens)
    assert after.coords is not None
    visual = tiny.visual_mask(family, batch)[0].nonzero().flatten()
    width = tokens.spans.shape[0][1]
    cells = {int(index): coords for index, coords in zip(after.index, after.coords.tolist())}
    places = visual.tolist()
    expected = []
    for place, row in enumerate(stock):  # lines of an image may have text between them
        if place not in places:
            expected.append(row)
        elif (index := places.index(place)) in cells:
            _, y, x = cells[index]
            expected.append(stock[visual[int(y + 0.5) * width + int(x + 0.5)]])
    torch.testing.assert_close(found, torch.stack(expected))
    assert any(int(y + 0.5) * width + int(x + 0.5) != index for index, (_, y, x) in cells.items())


def test_a_cell_of_another_chunk_is_not_looked_for() -> None:
    tokens = tokens_of(frames([(1, 2, 4)]))
    part = replace(
        tokens.select(torch.tensor([0, 1, 2]), (3,)), coords=torch.tensor([[0, 0, 1.2], [0, 1, 1], [0, 0, 2]])
    )
    assert places_of(part, torch.tensor([5, 6, 7])).tolist() == [6, 6, 7]
