"""LLaVA-1.5: CLIP tower, pointwise projector, 1-D positions."""

from __future__ import annotations

from typing import Any

from foveate.models.family import Args, Family, Grid, Kwargs, Tower, argument, resize_images


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    pixels = argument(args, kwargs, 0, "pixel_values")
    patch = config.vision_config.patch_size
    return [(1, pixels.shape[-2] // patch, pixels.shape[-1] // patch)] * pixels.shape[0]


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    patch = config.vision_config.patch_size
    pixels = argument(args, kwargs, 0, "pixel_values")
    _, height, width = grid[0]  # the tower takes one size for all images
    small = resize_images(pixels, height * patch, width * patch)
    return (), {**kwargs, "pixel_values": small, "interpolate_pos_encoding": True}


def last_block(config: Any) -> int:
    """Of the blocks that the feature layers need."""
    # hidden_states[i] is the input of block i, so feature layer i needs blocks up to i - 1.
    chosen = config.vision_feature_layer
    chosen = [chosen] if isinstance(chosen, int) else chosen
    n_states = config.vision_config.num_hidden_layers + 1
    return int(min(layer % n_states for layer in chosen)) - 1


FAMILY = Family(
    model_type="llava",
    tower_type="clip_vision_model",
    tower=Tower(
        module="vision_tower",
        layout="padded",
        leading=1,
        output="multi_modal_projector",
        unit=lambda config: 1,
        last_block=last_block,
        kept_rows=lambda config: int(config.vision_feature_select_strategy == "full"),
        grid=_grid,
        resize=_resize,
        block_args={"attention_mask": "mask"},
    ),
)
