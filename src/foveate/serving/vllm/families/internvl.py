"""InternVL in vLLM, with the config of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import InternVLModel

from foveate.models import internvl
from foveate.serving.plan import Item
from foveate.serving.vllm import padded
from foveate.serving.vllm.engine import Engine, rows_of
from foveate.serving.vllm.graft import WHOLE, Part, skeleton


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """Tiles or frames of one size, one after another."""
    vision = config.vision_config
    height, width = (round(n // p * config.downsample_ratio) for n, p in zip(vision.image_size, vision.patch_size))
    grid = ((1, height, width),) * int(data[f"{modality}_num_patches"])
    return Item(grid, grid)


facts = partial(rows_of, names=(("image", "image_num_patches"), ("video", "video_num_patches")))


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model, up to vLLM's projector."""
    base, own = skeleton(InternVLModel, model.config), model.vision_tower
    tower = base.vision_tower
    tower.embeddings.patch_embeddings.projection = Part(own.embeddings.patch_embeddings.projection)
    tower.embeddings.cls_token = own.embeddings.cls_token
    tower.embeddings.position_embeddings = own.embeddings.position_embeddings
    for block, part in zip(tower.encoder.layer, own.encoder.layer):
        block.layernorm_before, block.layernorm_after = Part(part.layernorm_before), Part(part.layernorm_after)
        block.mlp, block.lambda_1, block.lambda_2 = Part(part.mlp), part.lambda_1, part.lambda_2
        attention, theirs = block.attention, part.attention
        attention.q_proj, attention.k_proj, attention.v_proj = theirs.q_proj, theirs.k_proj, theirs.v_proj
        if theirs.qk_normalization:
            attention.q_norm, attention.k_norm = Part(theirs.q_norm), Part(theirs.k_norm)
        attention.projection_layer, attention.kernel = theirs.projection_layer, theirs.attn
    tower.layernorm = own.layernorm
    tower.config._attn_implementation_internal = WHOLE
    base.multi_modal_projector = model.multi_modal_projector
    return base


ENGINE = Engine(
    architecture="InternVLForConditionalGeneration",
    stock="vllm.model_executor.models.interns1:InternS1ForConditionalGeneration",
    family=internvl.FAMILY,
    shape=shape,
    facts=facts,
    graft=graft,
    forwards=lambda model, base: padded.last_rows(model.vision_tower, base),
)
