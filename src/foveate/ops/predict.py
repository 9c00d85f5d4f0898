"""Tokens that an image's neighbours foretell, as lossless codecs foretell pixels; without a loop over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from foveate.ops.frames import cells_of, tokens_at
from foveate.ops.segments import segment_ids

Metric = Literal["max", "mae", "rmse"]
_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: x.abs().amax(-1),
    "mae": lambda x: x.abs().mean(-1),
    "rmse": lambda x: x.square().mean(-1).sqrt(),
}


def apart(x: Tensor, a: Tensor, b: Tensor, metric: Metric = "max") -> Tensor:
    """Distance between rows ``a (M,)`` and ``b (M,)`` of ``x (N, k)``: ``(M,)``, in fp32; infinite where one is ``N``."""
    last = max(len(x) - 1, 0)
    found = _NORMS[metric](x[a.clamp(max=last)].float() - x[b.clamp(max=last)].float())
    return found.masked_fill((a > last) | (b > last), torch.inf)


def surprise(
    x: Tensor,
    index: Tensor,
    counts: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    metric: Metric = "max",
    threshold: float = 0.0,
) -> Tensor:
    """Tell how far each token is from what its left, upper and upper left neighbours foretell.

    That is the left one; but the upper one where the left one is as the upper left and the upper one is not (an edge goes
    down), and in the first column. With a threshold the foretold is told on: a token that is near enough counts as the
    one that has foretold it, so that small steps do not add up.

    Args:
        x: ``(N, k)`` pixel values.
        index: ``(N,)`` int64, raster index of each token in its image; some may be missing.
        counts: tokens per image, sums to ``N``.
        shapes: rows and columns of each image.
        metric: the largest difference of two values, the mean one, or the root of the mean square.
        threshold: a distance less than it, or of 0, is none.

    Returns:
        ``(N,)``; infinite where there is no neighbour to foretell it.
    """
    n, device, segment = len(x), x.device, segment_ids(counts, x.device)
    width = torch.tensor([w for _, w in shapes], dtype=torch.long).to(device, non_blocking=True)[segment]
    sizes = [h * w for h, w in shapes]
    cell, row, column = cells_of(index, counts, sizes), index // width, index % width
    token = tokens_at(cell, sum(sizes))
    nobody = torch.full_like(cell, sum(sizes))
    left = token[torch.where(column > 0, cell - 1, nobody)]
    up = token[torch.where(row > 0, cell - width, nobody)]
    corner = token[torch.where((column > 0) & (row > 0), cell - width - 1, nobody)]

    def foretold(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        beside, above = (_near(apart(x, c, other, metric), threshold) for other in (a, b))
        return torch.where((beside & ~above & (b < n)) | (a >= n), b, a)

    own = torch.arange(n, device=device)
    if not threshold:  # what is the same as something is so to all that it is the same as
        return apart(x, own, foretold(left, up, corner), metric)
    anchor, found = torch.arange(n + 1, device=device), x.new_full((n,), torch.inf, dtype=torch.float32)
    line = row + column  # a token's neighbours are on the lines before
    order = line.argsort(stable=True)
    for here in order.split(torch.bincount(line).tolist()):
        by = foretold(*(anchor[each[here]] for each in (left, up, corner)))
        away = apart(x, here, by, metric)
        found = found.index_copy(0, here, away)
        anchor = anchor.index_copy(0, here, torch.where(_near(away, threshold), by, here))
    return found


def _near(away: Tensor, threshold: float) -> Tensor:
    """Tell which distances count as none."""
    return (away < threshold) | (away == 0)
