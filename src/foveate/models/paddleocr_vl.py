"""PaddleOCR-VL: all images in a packed row, patches in raster order, which the projector puts together; M-RoPE."""

from __future__ import annotations

from typing import Any

import torch

from foveate.models import qwen2_vl
from foveate.models.family import Args, Family, Grid, Kwargs, Tower, argument, resize_images


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    patches, grid_thw = argument(args, kwargs, 0, "pixel_values"), argument(args, kwargs, 1, "grid_thw")
    side, size, small = config.vision_config.spatial_merge_size, config.vision_config.patch_size, []
    new = [(t, height * side, width * side) for t, height, width in grid]
    parts = patches[0].split(grid_thw.prod(-1).tolist())
    for part, (t, height, width), (_, down, across) in zip(parts, grid_thw.tolist(), new):
        image = part.unflatten(0, (t, height, width)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        image = resize_images(image, down * size, across * size)
        image = image.unflatten(3, (across, size)).unflatten(2, (down, size))
        small.append(image.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
    return (), {**kwargs, "pixel_values": torch.cat(small)[None], "grid_thw": grid_thw.new_tensor(new)}


FAMILY = Family(
    model_type="paddleocr_vl",
    tower=Tower(
        module="visual",
        blocks="vision_model.encoder.layers",
        layout="row",
        canvas=False,
        joins="inside",
        output="projector",
        unit=qwen2_vl.FAMILY.tower.unit,
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
        grid=qwen2_vl.FAMILY.tower.grid,
        resize=_resize,
        block_args={"cu_seqlens": "seqlens", "position_embeddings": "rotary"},
    ),
)
