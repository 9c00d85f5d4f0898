"""LLaVA-NeXT: LLaVA with tiles. An image is seen whole, and in tiles that are put side by side, with a newline a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from foveate.models import llava
from foveate.models.family import Arrangement, Kwargs, View


def unpadded(config: Any, size: list[int]) -> tuple[int, int]:
    """Patches down and across of an image's tiles side by side, without their padding."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    tiles = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, vision.image_size)
    whole = torch.empty(1, tiles[0] * side, tiles[1] * side, device="meta")
    height, width = unpad_image(whole, size).shape[1:]
    return height, width


def tiles_of(config: Any, size: list[int]) -> int:
    """Tell how many tiles an image has, the whole view included."""
    return int(image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size))


def _views(config: Any, call: Kwargs) -> list[list[View]]:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return [[View(side, side), View(*unpadded(config, size))] for size in call["image_sizes"]]


def _arrange(base: Any, call: Kwargs, rows: Tensor, newline: Tensor) -> Sequence[Tensor]:
    tiles = rows.split([tiles_of(base.config, size) for size in call["image_sizes"]])
    features, _ = base.pack_image_features(tiles, call["image_sizes"], "default", image_newline=newline)
    return list(features)


FAMILY = replace(
    llava.FAMILY,
    model_type="llava_next",
    tower=replace(llava.FAMILY.tower, arrangements={"get_image_features": Arrangement(_views, _arrange)}),
)
