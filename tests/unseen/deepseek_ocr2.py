"""DeepSeek-OCR 2: SAM's blocks, convolutions, and 144 learned queries a picture; experts in the language model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DeepseekOcr2Config

from unseen import IMAGE, SIDE, TEXT

SAM: dict[str, Any] = dict(hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=4, mlp_dim=48)
SAM |= dict(image_size=2 * SIDE, patch_size=8, window_size=4, global_attn_indexes=[1], downsample_channels=[24, 32])
ENCODER: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
ENCODER |= dict(num_key_value_heads=2, vocab_size=8)
EXPERTS: dict[str, Any] = dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=48)


def config() -> Any:
    text = TEXT | EXPERTS | dict(mlp_layer_types=["dense", "sparse", "sparse", "sparse"])
    vision = dict(sam_config=SAM, encoder_config=ENCODER)
    return DeepseekOcr2Config(vision_config=vision, text_config=text, image_token_id=IMAGE)


def images(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 2 * SIDE, 2 * SIDE)}
