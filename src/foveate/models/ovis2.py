"""Ovis2: tiles one after another, each a span; the patches of a token, put together, become words of a visual vocabulary, whose
table makes features of them. Indicators between tiles are words of it, too, with tokens of their own, which are text."""

from __future__ import annotations

from typing import Any

from foveate.errors import InputError
from foveate.models.family import Args, Family, Grid, Kwargs, Tower, argument


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    vision = config.vision_config
    tiles, _, height, width = argument(args, kwargs, 0, "pixel_values").shape
    down, across = height // vision.patch_size, width // vision.patch_size
    if down != across or down % vision.hidden_stride:
        side = vision.patch_size * vision.hidden_stride
        raise InputError(
            f"tiles of {height} x {width} pixels reached the vision tower, which takes them for squares and makes one token of "
            f"{side} x {side} pixels: give it square tiles whose sides are multiples of {side} pixels"
        )
    return [(1, down // vision.hidden_stride, across // vision.hidden_stride)] * tiles


FAMILY = Family(
    model_type="ovis2",
    tower=Tower(
        module="vision_tower.transformer",
        blocks="encoder.layers",
        attention="attention",
        mid_norm="rms_norm2",
        ffn_end="ffn",
        attention_norm="rms_norm1",
        query="q_proj",
        attention_end="out_proj",
        layout="padded",
        joins="before",
        neck=("vision_tower.head_linear", "vision_tower.head_norm"),
        output="visual_embeddings_table",
        unit=lambda config: config.vision_config.hidden_stride**2,
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
        grid=_grid,
        resize=None,
        block_args={"attention_mask": "mask"},
    ),
)
