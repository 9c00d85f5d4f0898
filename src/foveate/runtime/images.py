"""The images of a tower call: their grids, and what else stock code says of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from foveate.errors import UnsupportedSiteError
from foveate.models.family import Grid, Side, Tower
from foveate.ops.segments import offsets


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a tower call, as the caller gave them or as the blocks see them.

    Attributes:
        grid: ``(frames, height, width)`` of each, in units.
        sides: patches down and across of every image, where units do not cover them; (): they do.
        padded: rows of every image with its padding, or None: there is none.
        cells: ``(U,)`` which cell of the first grid each unit stands for, where images were resized; None: they were not.
        pixels: what stock code is given of them, where a site asks; else None.
        raster: stock code is given patches in raster order; else those of a unit one after another.
        order: ``(U,)`` raster index of each unit in the sequence that the blocks see, or None: raster order.
    """

    grid: Grid
    sides: tuple[Side, ...] = ()
    padded: int | None = None
    cells: Tensor | None = None
    raster: bool = False
    order: Tensor | None = None
    pixels: Tensor | None = None

    def rows(self, unit: int, images: int) -> int:
        """Patches in each row of a batch of so many ``images``, padding included."""
        return self.padded or (sum(h * w for h, w in self.sides) or units(self.grid) * unit) // images

    def patches(self, unit: int) -> Tensor:
        """``(U, k)`` pixel values of each unit, in raster order."""
        x, n = self.pixels, units(self.grid)
        assert x is not None
        shapes = [(h, w) for t, h, w in self.grid for _ in range(t)]
        if x.dim() == 4 and len(x) == 1 and x.shape[3] == x.shape[2] * n * unit:  # a strip of patches
            x = x[0].unflatten(-1, (n * unit, -1)).permute(2, 0, 1, 3)
        if len(x) == n * unit:  # patch by patch
            rows, starts = x.flatten(1), offsets([h * w * unit for h, w in shapes])
            return (rows[_by_units(shapes, unit, starts).to(x.device)] if self.raster else rows).reshape(n, -1)
        if x.dim() == 3 and self.raster and len(x) == len(shapes) and x.shape[1] == self.padded:
            starts = [i * x.shape[1] for i in range(len(x))]
            return x.flatten(0, 1)[_by_units(shapes, unit, starts).to(x.device)].reshape(n, -1)
        high, wide = (max(side) for side in zip(*shapes))
        if x.dim() == 4 and len(x) == len(shapes) and not (x.shape[2] % high or x.shape[3] % wide or self.sides):
            cut = x.reshape(len(x), -1, high, x.shape[2] // high, wide, x.shape[3] // wide)
            cut = cut.permute(0, 2, 4, 1, 3, 5).reshape(len(x) * high * wide, -1)
            if n == len(cut):
                return cut
            line, column = torch.arange(high)[:, None], torch.arange(wide)  # images of several sizes, on one canvas
            there = torch.stack([(line < h) & (column < w) for h, w in shapes])
            return cut[there.flatten().nonzero()[:, 0].to(x.device, non_blocking=True)]
        raise UnsupportedSiteError(
            f"pixel values of patches are asked for, and stock code has those of {n} tokens as {tuple(x.shape)}: only rows or "
            "strips of patches, and images that patches divide, can be read"
        )


def images_of(spec: Tower, config: Any, args: Any, kwargs: Any, grid: Grid, reads: bool) -> Images:
    """Return what stock code says of the images of ``grid`` in a tower call; ``reads``: somebody asks for their pixels."""
    sides = tuple(spec.patches(config, args, kwargs) or ())
    sides = sides if any(strays_of(grid, sides, spec.unit(config))) else ()
    pixels = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
    padded = spec.padded(config, args, kwargs)
    return Images(grid, sides, padded, raster=bool(spec.joins), pixels=pixels if reads else None)


def _by_units(shapes: Sequence[Side], unit: int, starts: Sequence[int]) -> Tensor:
    """Return the rows of the patches of each unit, where those of an image begin at ``starts`` and stand in raster order."""
    side = isqrt(unit)
    parts = [
        start + torch.arange(h * w * unit).view(h, side, w, side).transpose(1, 2).flatten()
        for (h, w), start in zip(shapes, starts)
    ]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def units(grid: Grid) -> int:
    """Tell how many there are."""
    return sum(t * h * w for t, h, w in grid)


def strays_of(grid: Grid, sides: Sequence[Side], unit: int) -> list[int]:
    """Patches of each image that no unit covers."""
    return [h * w - units([shape]) * unit for (h, w), shape in zip(sides, grid)] if sides else [0] * len(grid)
