"""Square windows of the grids of several segments: which one a cell is in, and where in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, int]]


def most(shapes: Shapes, size: int) -> int:
    """Tell how many windows the grid has that has most of them.

    Args:
        shapes: height and width of each segment's grid.
        size: side of a window, in cells; those at the lower and right edge may be smaller.
    """
    return max((-(-height // size) * -(-width // size) for height, width in shapes), default=0)


def fitting(shapes: Shapes, size: int) -> int:
    """Return the side of a window that is no larger than the largest grid, in which one window has all."""
    return min(size, max((max(shape) for shape in shapes), default=size))


def places(index: Tensor, segment: Tensor, shapes: Shapes, size: int) -> tuple[Tensor, Tensor]:
    """Return the window of each cell, ``(N,)`` int64 below ``most(shapes, size)``, and its place there, below ``size**2``.

    Args:
        index: ``(N,)`` raster index of each cell in the grid of its segment.
        segment: ``(N,)`` int64.
        shapes, size: as in `most`.
    """
    widths = torch.tensor([width for _, width in shapes], dtype=torch.long).to(index.device, non_blocking=True)
    width = widths[segment]
    y, x = index // width, index % width
    return y // size * ((width + size - 1) // size) + x // size, y % size * size + x % size
