"""InternVL in vLLM, with the config that its authors publish it with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import InternVLConfig, InternVLModel

from foveate.errors import UnsupportedModelError
from foveate.models import internvl
from foveate.serving.plan import Item
from foveate.serving.vllm import padded
from foveate.serving.vllm.engine import Engine
from foveate.serving.vllm.families.internvl import facts
from foveate.serving.vllm.families.internvl import shape as tiles
from foveate.serving.vllm.graft import WHOLE, AllHeads, Part, skeleton, unfused

SAME = ("hidden_size", "intermediate_size", "num_attention_heads", "norm_type", "layer_norm_eps", "hidden_act")


def config_of(config: Any) -> InternVLConfig:
    """As transformers has it. What a family does not read of the language model is left out."""
    if config.ps_version != "v2":
        raise UnsupportedModelError(
            f"foveate does not serve InternVL with ps_version {config.ps_version!r}, whose features stand column by column: "
            "use a model of version 1.5 or later"
        )
    vision, text, last = config.vision_config, config.get_text_config(), config.select_layer
    return InternVLConfig(
        vision_config={
            **{name: getattr(vision, name) for name in SAME},
            "num_hidden_layers": last + 1 + (vision.num_hidden_layers if last < 0 else 0),
            "image_size": [vision.image_size] * 2,
            "patch_size": [vision.patch_size] * 2,
            "attention_bias": vision.qkv_bias,
            "use_mean_pooling": True,  # no norm after the blocks
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers,
            "vocab_size": 1,
        },
        downsample_ratio=config.downsample_ratio,
    )


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """Tiles or frames of one size, one after another."""
    return tiles(config_of(config), modality, data, features)


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model, up to vLLM's projector."""
    base, own = skeleton(InternVLModel, config_of(model.config)), model.vision_model
    tower = base.vision_tower
    tower.embeddings.patch_embeddings.projection = Part(own.embeddings.patch_embedding)
    tower.embeddings.cls_token = own.embeddings.class_embedding
    tower.embeddings.position_embeddings = own.embeddings.position_embedding
    for block, part in zip(tower.encoder.layer, own.encoder.layers):
        block.layernorm_before, block.layernorm_after = Part(part.norm1), Part(part.norm2)
        block.mlp, block.lambda_1, block.lambda_2 = Part(part.mlp), part.ls1, part.ls2
        attention, theirs = block.attention, part.attn
        attention.q_proj, attention.k_proj, attention.v_proj = unfused(theirs.qkv)
        if theirs.qk_normalization:
            attention.q_norm, attention.k_norm = AllHeads(theirs.q_norm, theirs), AllHeads(theirs.k_norm, theirs)
        attention.projection_layer, attention.kernel = Part(theirs.proj), theirs.attn
        attention.num_heads = theirs.num_heads_per_partition
        attention.embed_dim = attention.num_heads * attention.head_dim
    tower.config._attn_implementation_internal = WHOLE
    base.multi_modal_projector = model.mlp1
    return base


ENGINE = Engine(
    architecture="InternVLChatModel",
    stock="vllm.model_executor.models.internvl:InternVLChatModel",
    family=internvl.FAMILY,
    shape=shape,
    facts=facts,
    graft=graft,
    forwards=lambda model, base: padded.last_rows(model.vision_model, base),
    config=config_of,
)
