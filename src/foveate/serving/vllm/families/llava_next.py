"""LLaVA-NeXT in vLLM: a whole view and tiles side by side, with a newline after each of their lines."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import LlavaNextModel

from foveate.models import llava_next
from foveate.models.family import View
from foveate.serving.plan import Item
from foveate.serving.vllm import padded
from foveate.serving.vllm.engine import Engine, rows_of


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """Of an image that comes with ``image_sizes``, in pixels."""
    side, size = config.vision_config.image_size // config.vision_config.patch_size, data["image_sizes"].tolist()
    return padded.tiled(View(*llava_next.unpadded(config, size)), side, llava_next.tiles_of(config, size))


ENGINE = Engine(
    architecture="LlavaNextForConditionalGeneration",
    stock="vllm.model_executor.models.llava_next:LlavaNextForConditionalGeneration",
    family=llava_next.FAMILY,
    shape=shape,
    facts=partial(rows_of, names=(("image", "image_sizes"),)),
    graft=partial(padded.before_projector, LlavaNextModel),
    forwards=padded.forwards,
)
