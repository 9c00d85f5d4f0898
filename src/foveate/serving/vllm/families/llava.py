"""LLaVA-1.5 in vLLM, with a CLIP or a SigLIP tower."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import LlavaModel

from foveate.models import llava, llava_siglip
from foveate.serving.plan import Item
from foveate.serving.vllm import padded
from foveate.serving.vllm.engine import Engine


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """All images have one size. A CLS token that the projector lets through stands before them."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    grid, kept = ((1, side, side),), ENGINE.family_of(config).tower.kept_rows(config)
    return Item(grid, grid, gaps=((0, kept),) if kept else ())


ENGINE = Engine(
    architecture="LlavaForConditionalGeneration",
    stock="vllm.model_executor.models.llava:LlavaForConditionalGeneration",
    family=llava.FAMILY,
    variants=(llava_siglip.FAMILY,),
    shape=shape,
    facts=lambda kwargs: [],
    graft=partial(padded.up_to_projector, LlavaModel),
    forwards=padded.forwards,
)
