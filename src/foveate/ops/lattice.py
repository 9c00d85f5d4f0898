"""Grids that are halved again and again: how many halvings a cell survives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def halvings(y: Tensor, x: Tensor, pattern: Literal["2d", "checker"], at_most: int) -> Tensor:
    """Tell how often a grid can be halved until the cell ``(y, x)`` leaves it; cells whose coordinates are even stay longest.

    ``2d``: odd columns leave, then odd rows, then every second of the columns left, and so on. ``checker``: one colour of
    the checkerboard leaves, then the rest of the odd rows and columns, then one colour of the board left, and so on.

    Args:
        y, x: ``(N,)`` int64.
        pattern: see above.
        at_most: halvings of each axis that are told apart.

    Returns:
        ``(N,)`` int64, 0 to ``2 * at_most + 1``.
    """
    rows, columns = _twos(y, at_most), _twos(x, at_most)
    if pattern == "2d":
        return torch.minimum(2 * columns, 2 * rows + 1)
    return 2 * torch.minimum(columns, rows) + (columns == rows)


def _twos(n: Tensor, at_most: int) -> Tensor:
    """Tell how often 2 divides each number: ``(N,)`` int64; 0 is divisible as often as it may be."""
    powers = 2 ** torch.arange(1, at_most + 1, device=n.device)
    return (n[:, None] % powers == 0).sum(1)
