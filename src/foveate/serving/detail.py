"""A budget for each image by how much there is to see in it.

An engine gives a prompt its slots before the vision tower has seen the image, so a budget that follows from features comes too
late. This one follows from the pixels: the picture is cut into a grid of cells, and the share of the cells that have detail is
the share of the tokens that stay. The same picture has the same budget in every prompt. Which tokens stay, the method decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from foveate.errors import ConfigError, shown

CELLS = 24  # a side
PIXELS = 8  # a side of each cell: a larger picture is averaged, so that grain is no detail
FRAMES = 16  # of a longer video as many are looked at
STEPS = 20  # budgets are multiples of 1 / STEPS, so that there are few plans and few series of metrics


@dataclass(frozen=True)
class Adaptive:
    """What an image's pixels say about its budget.

    Attributes:
        least, most: budgets of an image without any detail, and of one that is full of it.
        threshold: a cell has detail if its brightness, from 0 to 1, has at least that standard deviation; in a video it must
            also have changed by as much, on average over its pixels, since the frame before.
    """

    least: float
    most: float
    threshold: float = 0.02

    @classmethod
    def read(cls, given: Any, most: float) -> Adaptive:
        """Return what a server was started with, checked, up to a budget of ``most``.

        Raises:
            ConfigError: it is no such thing.
        """
        names = {"least", "threshold"}
        if not isinstance(given, Mapping) or "least" not in given or not given.keys() <= names:
            raise ConfigError(
                f'"adaptive" is {shown(given)}, expected an object such as {{"least": 0.2, "threshold": 0.02}}'
            )
        made = cls(most=most, **given)
        for name, top in (("least", most), ("threshold", 0.5)):
            number: object = getattr(made, name)
            if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number <= top:
                raise ConfigError(
                    f'"adaptive": "{name}" is {shown(number)}, expected a number above 0, up to {top:.4g}'
                )
        return made

    def to_dict(self) -> dict[str, float]:
        """Return plain data."""
        return asdict(self)

    @property
    def budgets(self) -> list[float]:
        """All budgets that an image may get, ascending."""
        between = [step / STEPS for step in range(1, STEPS) if self.least < step / STEPS < self.most]
        return sorted({self.least, *between, self.most})

    def keep(self, picture: Any) -> float:
        """Return the budget of an image or a video: the share of its cells that have detail, rounded up, within the bounds."""
        share = math.ceil(detail(picture, self.threshold) * STEPS - 1e-6) / STEPS
        return min(max(share, self.least), self.most)


def detail(picture: Any, threshold: float) -> float:
    """Return the share of the cells that have detail, 0 to 1, on average over frames.

    Args:
        picture: an image, as PIL's or as an array of pixels; a video, as frames; or frames and what is known of them.
        threshold: as of `Adaptive`.
    """
    cells = np.stack([_cells(frame) for frame in _frames(picture)])
    there: NDArray[np.bool_] = cells.std(axis=-1) >= threshold
    there[1:] &= np.abs(np.diff(cells, axis=0)).mean(axis=-1) >= threshold
    return float(there.mean())


def _frames(picture: Any) -> Sequence[Any]:
    picture = picture[0] if isinstance(picture, tuple) else picture  # what is known of a video follows its frames
    if isinstance(picture, Image.Image) or getattr(picture, "ndim", 4) < 4:
        return [picture]
    chosen = np.linspace(0, len(picture) - 1, min(len(picture), FRAMES)).round().astype(int)
    return [picture[i] for i in chosen.tolist()]


def _cells(frame: Any) -> NDArray[np.float32]:
    """``(CELLS * CELLS, PIXELS * PIXELS)`` brightness, 0 to 1, of the pixels of each cell."""
    side = CELLS * PIXELS
    small = _image(frame).convert("L").resize((side, side), Image.Resampling.BOX)
    bright = np.asarray(small, dtype=np.float32) / 255
    cells: NDArray[np.float32] = bright.reshape(CELLS, PIXELS, CELLS, PIXELS).swapaxes(1, 2)
    return cells.reshape(CELLS * CELLS, PIXELS * PIXELS)


def _image(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return frame
    pixels = frame.numpy() if isinstance(frame, torch.Tensor) else np.asarray(frame)
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4):  # channels first
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype != np.uint8:  # numbers from 0 to 1, or to 255
        pixels = np.clip(pixels * (255 if pixels.max(initial=0) <= 1 else 1), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)
