"""Qwen2.5-VL: like Qwen2-VL, with window attention; the blocks see the 2x2 units window after window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from foveate.models import qwen2_vl
from foveate.models.family import Args, Grid, Kwargs, argument


def _order(config: Any, args: Args, kwargs: Kwargs) -> Tensor:
    vision = config.vision_config
    order: Tensor
    order, _ = get_vision_window_index(
        argument(args, kwargs, 1, "grid_thw"),
        spatial_merge_size=vision.spatial_merge_size,
        window_size=vision.window_size,
        patch_size=vision.patch_size,
    )
    return order


def _segments(config: Any, grid: Grid, block: int) -> list[int]:
    vision = config.vision_config
    if block in vision.fullatt_block_indexes:
        return qwen2_vl.FAMILY.tower.rows(config, grid, block)
    side = vision.window_size // vision.spatial_merge_size // vision.patch_size
    unit = vision.spatial_merge_size**2
    return [
        min(side, height - y) * min(side, width - x) * unit
        for frames, height, width in grid
        for _ in range(frames)
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


FAMILY = replace(
    qwen2_vl.FAMILY,
    model_type="qwen2_5_vl",
    tower=replace(qwen2_vl.FAMILY.tower, order=_order, segments=_segments),
)
