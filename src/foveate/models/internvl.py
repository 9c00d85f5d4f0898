"""InternVL: tiles one after another, each a span; pixel shuffle puts 2x2 patches together between tower and projector."""

from __future__ import annotations

from typing import Any

from foveate.errors import InputError
from foveate.models.family import Args, Family, Grid, Kwargs, Tower, argument, resize_images


def _patch(config: Any) -> tuple[int, int]:
    """Pixels down and across of a unit."""
    down, across = config.vision_config.patch_size
    return round(down / config.downsample_ratio), round(across / config.downsample_ratio)


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    images, _, height, width = argument(args, kwargs, 0, "pixel_values").shape
    down, across = config.vision_config.patch_size
    if height // down != width // across:
        raise InputError(
            f"images of {height} x {width} pixels reached the vision tower, whose patches are put together as if images were "
            "square: give it the square tiles that the model's processor makes"
        )
    down, across = _patch(config)
    return [(1, height // down, width // across)] * images


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    _, height, width = grid[0]  # the tower takes one size for all images
    down, across = _patch(config)
    pixels = resize_images(argument(args, kwargs, 0, "pixel_values"), height * down, width * across)
    return (), {**kwargs, "pixel_values": pixels}


def _unit(config: Any) -> int:
    return int(round(1 / config.downsample_ratio) ** 2)


FAMILY = Family(
    model_type="internvl",
    tower=Tower(
        module="vision_tower",
        blocks="encoder.layer",
        attention="attention",
        mid_norm="layernorm_after",
        ffn_end="mlp",
        ffn_scale="lambda_2",
        attention_norm="layernorm_before",
        query="q_proj",
        attention_end="projection_layer",
        layout="padded",
        leading=1,
        joins="before",
        output="multi_modal_projector",
        unit=_unit,
        last_block=lambda config: config.vision_feature_layer % (config.vision_config.num_hidden_layers + 1) - 1,
        grid=_grid,
        resize=_resize,
        attention_args={"attention_mask": "mask"},
    ),
)
