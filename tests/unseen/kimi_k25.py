"""Kimi K2.5: patches are given one by one; the language model is DeepSeek-V3's, with latent attention and experts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Kimi_K25Config

from unseen import IMAGE, TEXT

VISION: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
VISION |= dict(patch_size=4, pos_emb_height=8, pos_emb_width=8)
LATENT: dict[str, Any] = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16)
EXPERTS: dict[str, Any] = dict(n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, n_shared_experts=1)
EXPERTS |= dict(moe_intermediate_size=48, first_k_dense_replace=1, num_nextn_predict_layers=0)


def config() -> Any:
    text = TEXT | LATENT | EXPERTS | dict(model_type="deepseek_v3", num_key_value_heads=4)
    return Kimi_K25Config(
        vision_config=VISION, text_config=text, projection_hidden_size=32, image_token_id=IMAGE, video_token_id=101
    )


def images(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2 * 4 * 8, 3, 4, 4), "image_grid_thw": torch.tensor([[1, 4, 8]] * 2)}
