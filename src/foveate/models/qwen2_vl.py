"""Qwen2-VL: packed tower with one attention segment per frame, 2x2 patch merger, M-RoPE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.models.family import Args, Family, Grid, Kwargs, Tower, argument, resize_images


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    # In units of 2x2 patches, which is what the language model sees; the blocks see the units in raster order.
    merge = config.vision_config.spatial_merge_size
    grid_thw = argument(args, kwargs, 1, "grid_thw").tolist()
    return [(t, h // merge, w // merge) for t, h, w in grid_thw]


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    # Images come as rows of flattened patches, 2x2 block after block.
    patches = argument(args, kwargs, 0, "hidden_states")
    grid_thw = argument(args, kwargs, 1, "grid_thw")
    vision = config.vision_config
    merge, size, depth = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    rows = [t * h * w for t, h, w in grid_thw.tolist()]
    small, new_grid = [], []
    for image, (t, h, w), (_, units_h, units_w) in zip(patches.split(rows), grid_thw.tolist(), grid):
        new_h, new_w = units_h * merge, units_w * merge
        pixels = _to_pixels(image, (t, h, w), merge, size, depth)
        pixels = resize_images(pixels, new_h * size, new_w * size)
        small.append(_to_patches(pixels, (t, new_h, new_w), merge, size, depth))
        new_grid.append((t, new_h, new_w))
    rest = {name: value for name, value in kwargs.items() if name not in ("hidden_states", "grid_thw")}
    return (torch.cat(small), grid_thw.new_tensor(new_grid)), rest


def _to_pixels(patches: Tensor, grid: tuple[int, int, int], merge: int, size: int, depth: int) -> Tensor:
    """``(t h w, c d p p)`` patches to ``(t d, c, h p, w p)`` frames."""
    t, h, w = grid
    x = patches.view(t, h // merge, w // merge, merge, merge, -1, depth, size, size)
    return x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * depth, -1, h * size, w * size)


def _to_patches(frames: Tensor, grid: tuple[int, int, int], merge: int, size: int, depth: int) -> Tensor:
    """The inverse of `_to_pixels`."""
    t, h, w = grid
    x = frames.view(t, depth, -1, h // merge, merge, size, w // merge, merge, size)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)


FAMILY = Family(
    model_type="qwen2_vl",
    modalities={"pixel_values": "image_token_id", "pixel_values_videos": "video_token_id"},
    tower=Tower(
        module="visual",
        blocks="blocks",
        attention="attn",
        mid_norm="norm2",
        ffn_end="mlp",
        attention_norm="norm1",
        query="qkv",
        attention_end="proj",
        fused=True,
        layout="packed",
        output="visual.merger",
        unit=lambda config: config.vision_config.spatial_merge_size**2,
        last_block=lambda config: config.vision_config.depth - 1,
        grid=_grid,
        resize=_resize,
        block_args={"cu_seqlens": "seqlens", "position_embeddings": "rotary"},
    ),
)
