"""The images of a tower call: their grids, and what else stock code says of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveate.errors import UnsupportedSiteError
from foveate.models.family import Grid, Side, Tower


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a tower call, as the caller gave them or as the blocks see them.

    Attributes:
        grid: ``(frames, height, width)`` of each, in units.
        sides: patches down and across of every image, where units do not cover them; (): they do.
        padded: rows of every image with its padding, or None: there is none.
        cells: ``(U,)`` which cell of the first grid each unit stands for, where images were resized; None: they were not.
        pixels: what stock code is given of them, where a site asks; else None.
        order: ``(U,)`` raster index of each unit in the sequence that the blocks see, or None: raster order.
    """

    grid: Grid
    sides: tuple[Side, ...] = ()
    padded: int | None = None
    cells: Tensor | None = None
    order: Tensor | None = None
    pixels: Tensor | None = None

    def rows(self, unit: int, images: int) -> int:
        """Patches in each row of a batch of so many ``images``, padding included."""
        return self.padded or (sum(h * w for h, w in self.sides) or units(self.grid) * unit) // images

    def patches(self, unit: int) -> Tensor:
        """``(U, k)`` pixel values of each unit, in raster order."""
        x, n = self.pixels, units(self.grid)
        assert x is not None
        if x.dim() == 2 and len(x) == n * unit:  # patch by patch, those of a unit one after another
            return x.reshape(n, -1)
        (_, height, width), *_ = self.grid
        if x.dim() == 4 and n == len(x) * height * width and not (x.shape[2] % height or x.shape[3] % width):
            cut = x.reshape(len(x), -1, height, x.shape[2] // height, width, x.shape[3] // width)
            return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, -1)
        raise UnsupportedSiteError(
            f"pixel values of patches are asked for, and stock code has those of {n} tokens as {tuple(x.shape)}: only rows of "
            "patches, and images that patches divide, can be read"
        )


def images_of(spec: Tower, config: Any, args: Any, kwargs: Any, grid: Grid, reads: bool) -> Images:
    """Return what stock code says of the images of ``grid`` in a tower call; ``reads``: somebody asks for their pixels."""
    sides = tuple(spec.patches(config, args, kwargs) or ())
    sides = sides if any(strays_of(grid, sides, spec.unit(config))) else ()
    pixels = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
    return Images(grid, sides, spec.padded(config, args, kwargs), pixels=pixels if reads else None)


def units(grid: Grid) -> int:
    """Tell how many there are."""
    return sum(t * h * w for t, h, w in grid)


def strays_of(grid: Grid, sides: Sequence[Side], unit: int) -> list[int]:
    """Patches of each image that no unit covers."""
    return [h * w - units([shape]) * unit for (h, w), shape in zip(sides, grid)] if sides else [0] * len(grid)
