"""LLaVA-OneVision in vLLM: as LLaVA-NeXT, with tiles that are pooled where there are many; videos, pooled frame by frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import LlavaOnevisionModel

from foveate.models import llava_next, llava_onevision
from foveate.serving.plan import Item
from foveate.serving.vllm import padded
from foveate.serving.vllm.engine import Engine, rows_of

ASPECT = "anyres_max_9"  # vLLM does not look at the one in the config


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """Of an image that comes with ``image_sizes``, in pixels; of a video, after whose last frame comes a newline."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    if modality == "video":
        pooled = math.ceil(side / 2)
        count = (features - 1) // pooled**2
        return Item(((count, pooled, pooled),), ((count, side, side),), gaps=((features - 1, 1),))
    size = data["image_sizes"].tolist()
    call = {"image_sizes": [size], "vision_aspect_ratio": ASPECT}
    _, tiles = llava_onevision.FAMILY.tower.arrangements["get_image_features"].views(config, call)[0]
    return padded.tiled(tiles, side, llava_next.tiles_of(config, size))


ENGINE = Engine(
    architecture="LlavaOnevisionForConditionalGeneration",
    stock="vllm.model_executor.models.llava_onevision:LlavaOnevisionForConditionalGeneration",
    family=llava_onevision.FAMILY,
    shape=shape,
    facts=partial(rows_of, names=(("image", "image_sizes"), ("video", "pixel_values_videos"))),
    graft=partial(padded.before_projector, LlavaOnevisionModel),
    forwards=padded.forwards,
)
