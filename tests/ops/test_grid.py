"""Merging on rectangles against plain loops."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_cases import cloud, cosine, lattice, quick, rows, seeds
from torch import Tensor

from foveate.ops import grid
from foveate.ops.segments import offsets

Shapes = list[tuple[int, int]]
axes = st.sampled_from(["width", "height"])


@st.composite
def shrinking(draw: st.DrawFn) -> tuple[Shapes, Shapes, str]:
    """Rectangles, smaller ones, and the axis along which they shrink; a line at most by half."""
    axis = draw(axes)
    shapes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=4))
    which = 1 if axis == "width" else 0
    smaller = []
    for shape in shapes:
        side = draw(st.integers((shape[which] + 1) // 2, shape[which]))
        smaller.append((shape[0], side) if which else (side, shape[1]))
    return shapes, smaller, axis


def lines_by_loop(shapes: Shapes, axis: str) -> list[list[int]]:
    """Raster places of every line of every rectangle."""
    found, start = [], 0
    for height, width in shapes:
        if axis == "width":
            found += [[start + y * width + x for x in range(width)] for y in range(height)]
        else:
            found += [[start + y * width + x for y in range(height)] for x in range(width)]
        start += height * width
    return found


def groups_of_line(similarity: list[float], merges: int) -> list[list[int]]:
    """Groups of a line of which ``similarity[i]`` is that of tokens i and i + 1: the pairing, token by token."""
    n = len(similarity) + 1
    wishes = []
    for odd in range(1, n, 2):
        left = similarity[odd - 1]
        right = similarity[odd] if odd + 1 < n else -torch.inf
        wishes.append((-max(left, right), odd, odd + 1 if right > left else odd - 1))
    joined = {odd: even for _, odd, even in sorted(wishes)[:merges]}
    return [[even, *sorted(o for o, e in joined.items() if e == even)] for even in range(n) if even not in joined]


def merge_by_loop(features: Tensor, shapes: Shapes, smaller: Shapes, axis: str, shared: bool) -> set[frozenset[int]]:
    """The sets of raster places that become one token."""
    found: set[frozenset[int]] = set()
    lines, first = lines_by_loop(shapes, axis), 0
    for shape, small in zip(shapes, smaller):
        n_lines = shape[0] if axis == "width" else shape[1]
        here = lines[first : first + n_lines]
        first += n_lines
        similarity = [[cosine(features[a], features[b]) for a, b in zip(line, line[1:])] for line in here]
        if shared:
            mean = [sum(column) / n_lines for column in zip(*similarity)]
            similarity = [mean] * n_lines
        merges = shape[0] * shape[1] - small[0] * small[1]
        for line, values in zip(here, similarity):
            found |= {frozenset(line[i] for i in group) for group in groups_of_line(values, merges // n_lines)}
    return found


@quick
@given(shrinking(), seeds, st.booleans())
def test_merge_groups(case: tuple[Shapes, Shapes, str], seed: int, shared: bool) -> None:
    shapes, smaller, axis = case
    n, left = (sum(height * width for height, width in some) for some in (shapes, smaller))
    choices = [cloud(n, seed, 5)] + ([] if shared else [lattice(n, seed)])  # means of ties depend on rounding
    for features in choices:
        group = grid.merge_groups(features, shapes, smaller, axis, shared)
        found = [frozenset((group == g).nonzero().flatten().tolist()) for g in range(left)]
        assert set(found) == merge_by_loop(features, shapes, smaller, axis, shared)
        # Numbers go in raster order of the smaller rectangles: along a line of them, groups keep their order.
        for line in lines_by_loop(smaller, axis):
            members = [sorted(found[g]) for g in line]
            assert [m for group_ in members for m in group_] == sorted(m for group_ in members for m in group_)
        for before, after in zip(rows([h * w for h, w in shapes]), rows([h * w for h, w in smaller])):
            assert set(group[list(before)].tolist()) == set(after)


@quick
@given(shrinking())
def test_lines(case: tuple[Shapes, Shapes, str]) -> None:
    shapes, _, axis = case
    order, lengths = grid.lines(shapes, axis)
    lines = lines_by_loop(shapes, axis)
    assert order.tolist() == [place for line in lines for place in line]
    assert lengths == [len(line) for line in lines]


@quick
@given(shrinking())
def test_thin(case: tuple[Shapes, Shapes, str]) -> None:
    shapes, smaller, _ = case
    wanted = []
    for start, (h, w), (a, b) in zip(offsets([h * w for h, w in shapes]), shapes, smaller):
        kept_rows = [int((i + 0.5) * h / a) for i in range(a)]
        kept_columns = [int((i + 0.5) * w / b) for i in range(b)]
        wanted += [start + y * w + x for y in kept_rows for x in kept_columns]
    assert grid.thin(shapes, smaller).tolist() == wanted


def test_a_line_keeps_what_differs() -> None:
    """Two equal neighbours merge, the edge between two areas stays."""
    line = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]])
    assert grid.merge_groups(line, [(1, 6)], [(1, 4)], "width").tolist() == [0, 0, 1, 2, 2, 3]
    assert grid.merge_groups(line, [(6, 1)], [(4, 1)], "height").tolist() == [0, 0, 1, 2, 2, 3]
