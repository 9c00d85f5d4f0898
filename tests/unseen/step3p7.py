"""Step 3.7: two convolutions make the tokens; half of the layers slide, and most have experts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Step3p7Config

from unseen import IMAGE, SIDE, TEXT

VISION: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
VISION |= dict(image_size=2 * SIDE, patch_size=4, mlp_ratio=1.5, max_position_embeddings=256)
KINDS = ["full_attention", "sliding_attention"] * 2
ROPE: dict[str, Any] = {kind: dict(rope_type="default", rope_theta=10_000.0) for kind in KINDS}
EXPERTS: dict[str, Any] = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, share_expert_dim=48)


def config() -> Any:
    text = TEXT | EXPERTS | dict(head_dim=16, layer_types=KINDS, rope_parameters=ROPE, sliding_window=8)
    text |= dict(mlp_layer_types=["dense", "sparse", "sparse", "sparse"], num_sliding_attention_heads=4)
    text |= dict(query_pre_attn_scalar=16, model_type="step3p5")
    return Step3p7Config(vision_config=VISION, text_config=text, image_token_id=IMAGE)


def images(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 2 * SIDE, 2 * SIDE)}
