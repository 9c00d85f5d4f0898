"""Tiny models of types that are built like a family that `tiny` has, or nearly so: its config under another name.

Inputs are those of the other family (`Alike.like`). Each type costs one line of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import tiny
import tiny_shared as shared
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

Batch = dict[str, Any]
IDS = shared.TOKEN_ID


@dataclass(frozen=True)
class Alike:
    """How a type differs from another family.

    Attributes:
        like: the family that it takes inputs and sizes from.
        own, vision, text: fields of its config, and of the configs of its parts, that are others.
        batch: what it is given instead of what that family is.
        spared: probes that it is not asked, and why.
    """

    like: str
    own: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    batch: Callable[[Batch], Batch] = lambda batch: batch
    spared: dict[str, str] = field(default_factory=dict)


def _typed(batch: Batch) -> Batch:
    """With the modality of every token."""
    return {**batch, "mm_token_type_ids": (batch["input_ids"] == tiny.IMAGE_TOKEN["minicpmv4_6"]).int()}


def _untyped(batch: Batch) -> Batch:
    """Without the modality of every token, as positions count tokens in one row."""
    return {name: value for name, value in batch.items() if name != "mm_token_type_ids"}


def _flat(batch: Batch) -> Batch:
    """With patches of one frame, not two."""
    pixels: Tensor | None = batch.get("pixel_values")
    return batch if pixels is None else {**batch, "pixel_values": pixels[:, : pixels.shape[1] // 2].contiguous()}


def _cut(batch: Batch) -> Batch:
    """With patches of one frame, each ``(3, PATCH, PATCH)``."""
    pixels: Tensor | None = _flat(batch).get("pixel_values")
    shape = (3, shared.PATCH, shared.PATCH)
    return batch if pixels is None else {**batch, "pixel_values": pixels.unflatten(1, shape)}


SIGLIP = dict(
    model_type="siglip_vision_model", vision_use_head=False, patch_size=shared.PATCH, image_size=8 * shared.PATCH
)
PROJECTED = dict(alignment_intermediate_size=32, vision_feature_select_strategy="full")
FULL = ["full_attention"] * shared.LAYERS
COMMAND = dict(model_type="cohere2", layer_types=FULL, sliding_window=512)
MARKS = dict(image_start_id=IDS["<img>"], image_end_id=IDS["</img>"], newline_id=IDS["<unk>"])
MARKS |= dict(slice_start_id=IDS["<|vision_start|>"], slice_end_id=IDS["<|vision_end|>"])
GENERATOR = dict(base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=32, num_embeddings=16)
GENERATOR |= dict(num_patches=6, projection_dim=64, image_token_embed_dim=64)
JANUS = dict(model_type="janus_vision_model", projection_dim=64, num_image_tokens=36)
ROPE: dict[str, Any] = dict(rope_type="default", rope_theta=10_000.0)
SECTIONS = ROPE | dict(mrope_section=[2, 3, 3], mrope_interleaved=True)

ALIKE = {
    "aya_vision": Alike("internvl", PROJECTED, SIGLIP, COMMAND),
    "cohere2_vision": Alike("internvl", PROJECTED, SIGLIP, COMMAND),
    "cohere_compass": Alike(
        "qwen3_vl",
        vision=dict(model_type="cohere_compass_vision"),
        text=dict(model_type="cohere_compass_text", layer_types=FULL, rope_parameters={"full_attention": SECTIONS}),
    ),
    "cosmos3_edge": Alike(
        "qwen2_vl",
        dict(projector_hidden_size=48),
        dict(model_type="cosmos3_edge_vision", hidden_size=32, intermediate_size=48, num_hidden_layers=shared.BLOCKS)
        | dict(num_attention_heads=4, num_patches=25),
        dict(model_type="cosmos3_edge_text", head_dim=16),
        _flat,
    ),
    "cosmos3_omni": Alike("qwen3_vl"),
    "deepseek_vl": Alike("llava_siglip"),
    "exaone4_5": Alike(
        "qwen2_5_vl",
        vision=dict(model_type="exaone4_5_vision", num_key_value_heads=1),
        text=dict(model_type="exaone4", layer_types=FULL, rope_parameters=ROPE),
        batch=_untyped,
    ),
    "glm_ocr": Alike("glm4v", vision=dict(model_type="glm_ocr_vision"), text=dict(model_type="glm_ocr_text")),
    "glmga": Alike("glm46v"),
    "hyperclovax_vision_v2": Alike(
        "qwen2_5_vl", text=dict(model_type="hyperclovax", rope_parameters=ROPE), batch=_untyped
    ),
    "janus": Alike("llava_siglip", dict(vq_config=GENERATOR), JANUS),
    "lighton_ocr": Alike("mistral3", text=dict(model_type="qwen3")),
    "minicpm_ocr": Alike("minicpmv4_6", dict(downsample_mode="16x"), dict(model_type="minicpm_ocr_vision")),
    "minicpmv4_7": Alike("minicpmv4_6", MARKS, dict(model_type="minicpmv4_7_vision"), batch=_typed),
    "paddleocr_vl": Alike(
        "qwen2_vl",
        vision=dict(model_type="paddleocr_vl_vision", hidden_size=32, intermediate_size=48, image_size=5 * shared.PATCH)
        | dict(num_hidden_layers=shared.BLOCKS, num_attention_heads=2),
        text=dict(model_type="paddleocr_vl_text", head_dim=16),
        batch=_cut,
    ),
    "qianfan_ocr": Alike(
        "internvl", vision=dict(model_type="qianfan_ocr_vision"), text=dict(model_type="qwen3", head_dim=16)
    ),
    "shieldgemma2": Alike("gemma3"),
    "video_llava": Alike("llava"),
    "vipllava": Alike("llava", dict(vision_feature_layer=[-2, -1])),
}
#: those that this transformers has
KNOWN = [name for name in ALIKE if name in CONFIG_MAPPING and hasattr(transformers, CLASSES.get(name, ""))]


def config(name: str, **text: Any) -> Any:
    """The config of a tiny model; ``text`` overrides fields of its language model."""
    spec, cls = ALIKE[name], CONFIG_MAPPING[name]
    plain, fields = tiny.config(spec.like, **text).to_dict(), cls().to_dict()
    kept = {key: value for key, value in plain.items() if key in fields and key not in ("model_type", "architectures")}
    for token in ("image_token_id", "image_token_index"):
        if token in fields:
            kept[token] = tiny.IMAGE_TOKEN[spec.like]
    kept |= {"vision_config": plain["vision_config"] | spec.vision, "text_config": plain["text_config"] | spec.text}
    return cls(**kept | spec.own)


@cache
def model(name: str, impl: str = "sdpa") -> PreTrainedModel:
    """The tiny model of a type."""
    return tiny.build(config(name), impl, cls=getattr(transformers, CLASSES[name]))


def inputs(name: str, rows: list[list[tiny.Item]], **how: Any) -> Batch:
    """Inputs of a batch as in `tiny.inputs`."""
    return ALIKE[name].batch(tiny.inputs(ALIKE[name].like, rows, **how))
