"""From the rows of the tower's output module to the features that replace placeholders, where these are not the same.

A family declares the stock code in between (`foveate.models.family.Arrangement`). That code runs as it is; to learn what it
does, it is run once more on rows of ones (which features come from the tower at all, on the host), and, if the tower has
dropped or merged rows, on a few channels that say so (which share of each feature is left).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.errors import UnsupportedModelError
from foveate.models.family import Arrangement, Grid, Kwargs, View
from foveate.ops.segments import offsets
from foveate.runtime.layout import HOLE, frames, tokens_of

LEAST = 1e-3  # a smaller share of a feature is nothing: the rounding of a weight that should be zero


@dataclass(frozen=True)
class Order:
    """What the features of a tower call stand for.

    Attributes:
        grid: what the language model sees, ``(frames, height, width)`` each.
        patch: ``(R,)`` on the host, for every feature its place among all cells of ``grid`` in raster order; -1: no patch.
        starts: feature where each image or video begins, and the end.
    """

    grid: Grid
    patch: Tensor
    starts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Left:
    """What a reduced tower call has left of its units, one entry for each unit of the full grid.

    Attributes:
        present: ``(U,)`` 1.0 or 0.0.
        sizes: ``(U,)`` or None: nothing was merged.
        shift: ``(U, 2)`` how far each is from its own place along y and x, or None: nothing has moved.
    """

    present: Tensor
    sizes: Tensor | None
    shift: Tensor | None


class Arranged:
    """One call of the function that encodes a modality, whose features are arranged.

    Args:
        base: the base model.
        config: of the whole model.
        spec: what the family says.
        arguments: of the call, by name.
    """

    def __init__(self, base: Any, config: Any, spec: Arrangement, arguments: Kwargs) -> None:
        self.base, self.spec = base, spec
        self.arguments = {name: _as_list(value) for name, value in arguments.items()}
        self.views: list[View] = [view for image in spec.views(config, self.arguments) for view in image]
        self.order: Order | None = None
        self._left: Left | None = None
        self._shape = (0, 0)

    def pool(self, tower: Grid, left: Left | None, x: Tensor) -> Tensor:
        """Give what the output module shall see where stock code has pooled the rows of ``tower``, zeros where one is missing.

        Args:
            tower: the tiles.
            left: what is there of their units.
            x: ``(tiles, n', C)`` pooled.

        Returns:
            The same, each the mean of what is left of its rows.
        """
        pool = self.spec.pool
        if left is None or pool is None:
            return x
        (_, height, width), *_ = tower
        view = self.views[0]
        shares = pool(self.base, _channels(left, (len(tower), height * width)))
        shares = shares.flatten(0, 1)
        scale = shares.new_tensor([view.height / height, view.width / width])
        self._left = Left(
            present=(shares[:, 0] > LEAST).float(),
            sizes=None if left.sizes is None else shares[:, 2],
            shift=None if left.shift is None else _shift(shares) * scale,
        )
        return _mean_of_left(x.flatten(0, 1), shares, hole=0.0).view(x.shape)

    def arrive(self, tower: Grid, left: Left | None) -> Left | None:
        """The output module has run on tiles of ``tower``; ``left`` of them is there, the rest is zeros.

        Returns:
            What is there of its rows.
        """
        (_, height, width), *_ = tower
        if self.spec.pool is not None:
            left, height, width = self._left, self.views[0].height, self.views[0].width
        self._left, self._shape = left, (len(tower), height * width)
        ones = torch.ones(*self._shape, 1, dtype=torch.float64)
        parts = self.spec.arrange(self.base, self.arguments, ones, torch.zeros(1, dtype=torch.float64))
        is_patch = torch.cat(list(parts))[:, 0] > 0.5
        grid = [(view.frames, view.height, view.width) for view in self.views]
        if int(is_patch.sum()) != sum(t * h * w for t, h, w in grid):
            raise UnsupportedModelError(
                f"{type(self.base).__name__} makes {int(is_patch.sum())} features of {self._shape[0]} tiles, but its family "
                f"describes views of {grid}: mend the views of the family"
            )
        patch = torch.where(is_patch, is_patch.cumsum(0) - 1, -1)
        self.order = Order(grid, patch, tuple(offsets([len(part) for part in parts])))
        return left

    def finish(self, features: Any) -> tuple[Any, Tensor | None, Tensor | None, Tensor | None]:
        """Features as stock code made them, with zeros where rows were dropped.

        Returns:
            The same with each a mean over what is left; which of them are holes, ``(R,)`` bool, or None: none; and for each
            cell of the grid its size, and its coordinates, where something was merged or moved.
        """
        order, left = self.order, self._left
        assert order is not None
        parts: list[Tensor] = list(features)
        if left is None:
            return features, None, None, None
        rows = _channels(left, self._shape)
        arranged = self.spec.arrange(self.base, self.arguments, rows, rows.new_zeros(rows.shape[-1]))
        fixed = [
            _mean_of_left(part.flatten(0, -2), shares, HOLE).view(part.shape)
            for part, shares in zip(parts, arranged, strict=True)
        ]
        of_features = torch.cat(list(arranged))
        hole = (of_features[:, 0] <= LEAST) & (of_features[:, 1] > 0)
        shares = of_features[(order.patch >= 0).nonzero().flatten().to(rows.device)]
        sizes = None if left.sizes is None else shares[:, 2]
        coords = None if left.shift is None else self._coords(_shift(shares))
        same = torch.stack(fixed) if isinstance(features, Tensor) else type(features)(fixed)
        return same, hole, sizes, coords

    def _coords(self, shift: Tensor) -> Tensor:
        """``(N, 3)`` of cells that are ``shift`` tower units away from their places; none leaves its view."""
        assert self.order is not None
        tokens = tokens_of(frames(self.order.grid), shift.device)
        spans = [view for view in self.views for _ in range(view.frames)]
        scale = [(1.0, 1.0) if v.of is None else (v.height / v.of[0], v.width / v.of[1]) for v in spans]
        last = torch.tensor([(v.height - 1.0, v.width - 1.0) for v in spans])
        scale_of, last_of = (
            each.to(shift.device, non_blocking=True)[tokens.segment] for each in (torch.tensor(scale), last)
        )
        moved = (tokens.coords[:, 1:] + shift * scale_of).clamp(min=0.0).minimum(last_of)
        return torch.cat([tokens.coords[:, :1], moved], dim=1)


def arguments_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Kwargs) -> Kwargs:
    """Return the arguments of a call, by name."""
    bound: Kwargs = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    more: Kwargs = bound.pop("kwargs", {})
    return bound | more


def _channels(left: Left, shape: tuple[int, int]) -> Tensor:
    """``(tiles, n, k)``: of every row what is there, what is gone, and what there is of sizes and shifts."""
    channels = [left.present, 1 - left.present]
    if left.sizes is not None:
        channels.append(left.present * left.sizes)
    if left.shift is not None:
        channels += (left.present[:, None] * left.shift).unbind(1)
    return torch.stack(channels, dim=-1).view(*shape, -1)


def _shift(shares: Tensor) -> Tensor:
    """``(..., 2)`` mean shift of what is left."""
    return shares[..., -2:] / shares[..., :1].clamp(min=LEAST)


def _mean_of_left(part: Tensor, shares: Tensor, hole: float) -> Tensor:
    """Features ``(R, C)`` of which ``shares (R, >= 2)`` is left and gone (both 0: a newline; there may be more of these)."""
    left, gone = shares[: len(part), :2].to(part.device).unsqueeze(-1).unbind(1)
    mean = part / torch.where(left > LEAST, left, 1.0).to(part.dtype)
    mean = torch.where(left > LEAST, mean, part.new_full((), hole))
    return torch.where(gone > 0, mean, part)  # what has lost nothing stays as it is, to the bit


def _as_list(value: Any) -> Any:
    integers = isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()
    return value.tolist() if integers else value
