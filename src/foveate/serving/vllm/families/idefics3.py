"""Idefics3 in vLLM: tiles of one size, with text between them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import Idefics3Model

from foveate.models import idefics3
from foveate.serving.plan import Item
from foveate.serving.vllm import padded
from foveate.serving.vllm.engine import Engine, rows_of
from foveate.serving.vllm.graft import Part, skeleton


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """Of an image that is cut into ``num_patches`` tiles."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size // config.scale_factor
    grid = ((1, side, side),) * int(data["num_patches"])
    return Item(grid, grid)


def graft(cls: Any, model: Any) -> Any:
    """Return the vision side of ``cls``, up to vLLM's connector."""
    base, own = skeleton(cls, model.config), model.model.vision_model
    tower = base.vision_model
    tower.embeddings, tower.post_layernorm = Part(own.embeddings), own.post_layernorm
    padded.blocks(tower, own)
    base.connector = model.model.connector
    return base


def forwards(model: Any, base: Any) -> Any:
    """vLLM's tower gives what that of ``base`` gives, ``(tiles, rows, C)``."""

    def forward(pixel_values: Any, patch_attention_mask: Any, **_: Any) -> Any:
        return base.vision_model(pixel_values, patch_attention_mask=patch_attention_mask).last_hidden_state

    return [(model.model.vision_model, forward)]


ENGINE = Engine(
    architecture="Idefics3ForConditionalGeneration",
    stock="vllm.model_executor.models.idefics3:Idefics3ForConditionalGeneration",
    family=idefics3.FAMILY,
    shape=shape,
    facts=partial(rows_of, names=(("image", "num_patches"),)),
    graft=partial(graft, Idefics3Model),
    forwards=forwards,
    decoder="model.text_model",
)
