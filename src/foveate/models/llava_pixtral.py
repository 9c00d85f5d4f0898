"""Pixtral: LLaVA with a tower that has all images, each of its own size, one after another in a single row, kept apart by a
mask. In the prompt every line of an image ends with a text token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InputError
from foveate.models import llava
from foveate.models.family import Args, Grid, Kwargs, argument, resize_images

Size = tuple[int, int]


def _sizes(args: Args, kwargs: Kwargs) -> tuple[Tensor, list[Size]]:
    """Pixels, padded to the largest image, and what of them is each image."""
    pixels: Tensor = argument(args, kwargs, 0, "pixel_values")
    sizes = args[1] if len(args) > 1 else kwargs.get("image_sizes")
    if sizes is None:
        return pixels, [(pixels.shape[-2], pixels.shape[-1])] * len(pixels)
    return pixels, [(int(height), int(width)) for height, width in torch.as_tensor(sizes).tolist()]


def side(config: Any) -> int:
    """Patches along a side of a unit."""
    return int(getattr(config, "spatial_merge_size", 1))


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    patch, merge = config.vision_config.patch_size, side(config)
    grid = [(1, height // patch, width // patch) for height, width in _sizes(args, kwargs)[1]]
    if any(height % merge or width % merge for _, height, width in grid):
        raise InputError(
            f"images of {[shape[1:] for shape in grid]} patches do not divide into squares of {merge} x {merge}, of which this "
            f"model makes one token each: give it sizes that are multiples of {patch * merge} pixels, as its processor does"
        )
    return [(1, height // merge, width // merge) for _, height, width in grid]


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    cell = config.vision_config.patch_size * side(config)
    pixels, sizes = _sizes(args, kwargs)
    new = [(height * cell, width * cell) for _, height, width in grid]
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
