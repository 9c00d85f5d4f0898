"""LLaVA-NeXT-Video: LLaVA-NeXT, and videos whose frames are pooled between tower and projector, without newlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from foveate.errors import UnsupportedModelError
from foveate.models import llava_next
from foveate.models.family import IN_DECODER, Arrangement, Kwargs, View


def videos(call: Kwargs) -> Tensor:
    """``(videos, frames, ...)`` pixels."""
    pixels: Tensor = call["pixel_values_videos"] if "pixel_values_videos" in call else call["pixel_values"]
    return pixels


def _views(config: Any, call: Kwargs) -> list[list[View]]:
    pixels = videos(call)
    side = config.vision_config.image_size // config.vision_config.patch_size // config.spatial_pool_stride
    return [[View(side, side, frames=pixels.shape[1])]] * len(pixels)


def _arrange(base: Any, call: Kwargs, rows: Tensor, newline: Tensor) -> Sequence[Tensor]:
    return [video.flatten(0, 1) for video in rows.chunk(len(videos(call)))]


def _pool(base: Any, rows: Tensor) -> Tensor:
    mode = base.config.spatial_pool_mode
    if mode != "average":
        raise UnsupportedModelError(
            f"this model pools video frames by {mode!r}, which mixes what is left with what is gone: "
            "reduce in its language model, not in the vision tower"
        )
    pooled: Tensor = base.vision_resampler(rows)
    return pooled


FAMILY = replace(
    llava_next.FAMILY,
    model_type="llava_next_video",
    modalities={"pixel_values": "image_token_id", "pixel_values_videos": "video_token_id"},
    tower=replace(
        llava_next.FAMILY.tower,
        arrangements={
            **llava_next.FAMILY.tower.arrangements,
            "get_video_features": Arrangement(_views, _arrange, _pool),
        },
    ),
    frames=IN_DECODER,
)
