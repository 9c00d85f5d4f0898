"""Command A Vision: tiles one after another, each a span; SigLIP, whose patches the projector puts together before its first
linear layer. It takes every tile for a square."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.errors import InputError
from foveate.models import llava_siglip
from foveate.models.family import Args, Grid, Kwargs, argument, resize_images


def _cell(config: Any) -> int:
    """Pixels along a side of a unit."""
    return int(config.vision_config.patch_size * config.downsample_factor)


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    images, _, height, width = argument(args, kwargs, 0, "pixel_values").shape
    cell = _cell(config)
    if height != width or height % cell:
        raise InputError(
            f"images of {height} x {width} pixels reached the vision tower, whose projector takes them for squares and makes "
            f"one token of {cell} x {cell} pixels: give it the square tiles that the model's processor makes"
        )
    return [(1, height // cell, width // cell)] * images


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    _, height, width = grid[0]  # the tower takes one size for all images
    cell = _cell(config)
    small = resize_images(argument(args, kwargs, 0, "pixel_values"), height * cell, width * cell)
    return (), {**kwargs, "pixel_values": small, "interpolate_pos_encoding": True}


FAMILY = replace(
    llava_siglip.FAMILY,
    model_type="cohere2_vision",
    alias="",
    tower=replace(
        llava_siglip.FAMILY.tower,
        joins="inside",
        unit=lambda config: config.downsample_factor**2,
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
        grid=_grid,
        resize=_resize,
    ),
)
