"""LLaVA-OneVision: tiles as in LLaVA-NeXT, pooled where there are many; videos pooled frame by frame; SigLIP, without CLS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.models import llava_next, llava_siglip
from foveate.models.family import IN_DECODER, Arrangement, Kwargs, View
from foveate.models.llava_next_video import videos


def _tiled(call: Kwargs) -> list[bool]:
    """Tell which images are cut into tiles: those that are alone in their sample."""
    counts = call.get("batch_num_images")
    return [True] * len(call["image_sizes"]) if counts is None else [n == 1 for n in counts for _ in range(n)]


def _side(config: Any) -> int:
    return int(config.vision_config.image_size // config.vision_config.patch_size)


def _views(config: Any, call: Kwargs) -> list[list[View]]:
    side, aspect = _side(config), call.get("vision_aspect_ratio") or config.vision_aspect_ratio
    found = []
    for size, tiled in zip(call["image_sizes"], _tiled(call)):
        views = [View(side, side)]
        if tiled:
            height, width = whole = llava_next.unpadded(config, size)
            ratio = math.sqrt(height * width / (int(aspect.removeprefix("anyres_max_")) * side**2))
            if ratio > 1.1:
                height, width = int(height // ratio), int(width // ratio)
            views.append(View(height, width, of=whole))
        found.append(views)
    return found


def _arrange(base: Any, call: Kwargs, rows: Tensor, newline: Tensor) -> Sequence[Tensor]:
    counts = [
        llava_next.tiles_of(base.config, size) if tiled else 1 for size, tiled in zip(call["image_sizes"], _tiled(call))
    ]
    aspect = call.get("vision_aspect_ratio") or base.config.vision_aspect_ratio
    sizes = call["image_sizes"]
    features, _ = base.pack_image_features(rows.split(counts), sizes, image_newline=newline, vision_aspect_ratio=aspect)
    return list(features)


def _video_views(config: Any, call: Kwargs) -> list[list[View]]:
    side = _side(config)
    pooled = math.ceil(side / 2)
    return [[View(pooled, pooled, frames=videos(call).shape[1], of=(side, side))]] * len(videos(call))


def _arrange_video(base: Any, call: Kwargs, rows: Tensor, newline: Tensor) -> Sequence[Tensor]:
    pooled = base.apply_pooling(rows)
    return [torch.cat([video.flatten(0, 1), newline[None]]) for video in pooled.chunk(len(videos(call)))]


FAMILY = replace(
    llava_siglip.FAMILY,
    model_type="llava_onevision",
    alias="",
    modalities={"pixel_values": "image_token_id", "pixel_values_videos": "video_token_id"},
    tower=replace(
        llava_siglip.FAMILY.tower,
        arrangements={
            "get_image_features": Arrangement(_views, _arrange),
            "get_video_features": Arrangement(_video_views, _arrange_video),
        },
    ),
    frames=IN_DECODER,
)
