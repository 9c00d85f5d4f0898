"""Gemma 3: SigLIP, whose patches the projector pools, and an image that sees all of itself; most layers slide.

The base model makes the attention masks, one for each kind of layer. Crops (pan and scan) are images of their own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from foveate.models import paligemma
from foveate.models.family import Args, Decoder, Grid, Kwargs, Side, argument, resize_images


def _across(config: Any) -> int:
    """Patches across a unit."""
    vision = config.vision_config
    return int(vision.image_size // vision.patch_size // math.isqrt(config.mm_tokens_per_image))


def _pixels(config: Any) -> int:
    """Pixels across a unit."""
    return int(config.vision_config.patch_size) * _across(config)


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    pixels, side = argument(args, kwargs, 0, "pixel_values"), _pixels(config)
    return [(1, pixels.shape[-2] // side, pixels.shape[-1] // side)] * pixels.shape[0]


def _patches(config: Any, args: Args, kwargs: Kwargs) -> list[Side]:
    # Pooling leaves out what is left over at the bottom and at the right.
    pixels, patch = argument(args, kwargs, 0, "pixel_values"), config.vision_config.patch_size
    return [(pixels.shape[-2] // patch, pixels.shape[-1] // patch)] * pixels.shape[0]


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    _, height, width = grid[0]  # the tower takes one size for all images
    side = _pixels(config)
    small = resize_images(argument(args, kwargs, 0, "pixel_values"), height * side, width * side)
    return (), {**kwargs, "pixel_values": small, "interpolate_pos_encoding": True}


def _unit(config: Any) -> int:
    return _across(config) ** 2


ALSO = ("shieldgemma2",)
FAMILY = replace(
    paligemma.FAMILY,
    model_type="gemma3",
    tower=replace(paligemma.FAMILY.tower, joins="inside", unit=_unit, grid=_grid, patches=_patches, resize=_resize),
    decoder=Decoder(kinds="layer_types"),
)
