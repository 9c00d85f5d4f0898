"""Pixtral: LLaVA with a tower that has all images, each of its own size, one after another in a single row, kept apart by a
mask. In the prompt every line of an image ends with a text token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.models import llava
from foveate.models.family import Args, Grid, Kwargs, Side, argument, resize_images


def _sizes(args: Args, kwargs: Kwargs) -> tuple[Tensor, list[Side]]:
    """Pixels, padded to the largest image, and what of them is each image."""
    pixels: Tensor = argument(args, kwargs, 0, "pixel_values")
    sizes = args[1] if len(args) > 1 else kwargs.get("image_sizes")
    if sizes is None:
        return pixels, [(pixels.shape[-2], pixels.shape[-1])] * len(pixels)
    return pixels, [(int(height), int(width)) for height, width in torch.as_tensor(sizes).tolist()]


def side(config: Any) -> int:
    """Patches along a side of a unit."""
    return int(getattr(config, "spatial_merge_size", 1))


def _patches(config: Any, args: Args, kwargs: Kwargs) -> list[Side]:
    patch = config.vision_config.patch_size
    return [(height // patch, width // patch) for height, width in _sizes(args, kwargs)[1]]


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    # What is left over at the bottom and at the right is no token's.
    merge = side(config)
    return [(1, height // merge, width // merge) for height, width in _patches(config, args, kwargs)]


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    cell = config.vision_config.patch_size * side(config)
    pixels, sizes = _sizes(args, kwargs)
    fits = [(height * cell, width * cell) for _, height, width in grid]
    # An image that keeps its grid keeps its size, too, and what is left over of it.
    new = [(h, w) if (h // cell * cell, w // cell * cell) == size else size for size, (h, w) in zip(fits, sizes)]
    small = pixels.new_zeros(*pixels.shape[:2], max(h for h, _ in new), max(w for _, w in new))
    for image, canvas, (h, w), size in zip(pixels, small, sizes, new):
        canvas[:, : size[0], : size[1]] = resize_images(image[None, :, :h, :w], *size)[0]
    return (), {**kwargs, "pixel_values": small, "image_sizes": new}


def _segments(config: Any, grid: Grid, block: int) -> list[int]:
    rows = [height * width * side(config) ** 2 for _, height, width in grid]
    # Only flash kernels are told where images end; the others compute what the mask hides.
    return rows if "flash" in str(config.vision_config._attn_implementation) else [sum(rows)]


FAMILY = replace(
    llava.FAMILY,
    alias="llava_pixtral",
    tower_type="pixtral",
    tower=replace(
        llava.FAMILY.tower,
        blocks="transformer.layers",
        attention="attention",
        mid_norm="ffn_norm",
        ffn_end="feed_forward",
        attention_norm="attention_norm",
        attention_end="o_proj",
        leading=0,
        kept_rows=lambda config: 0,
        grid=_grid,
        patches=_patches,
        resize=_resize,
        segments=_segments,
        block_args={
            "attention_mask": "mask",
            "position_embeddings": "rotary",
            "cu_seq_lens_q": "seqlens",
            "cu_seq_lens_k": "seqlens",
        },
    ),
)
