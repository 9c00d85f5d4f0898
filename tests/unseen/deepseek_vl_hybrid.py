"""DeepSeek-VL with two towers: SigLIP's sees small images, SAM's large ones."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DeepseekVLHybridConfig

from unseen import IMAGE, SIDE, TEXT

SIGLIP: dict[str, Any] = dict(model_type="siglip_vision_model", hidden_size=32, intermediate_size=48)
SIGLIP |= dict(num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=8, vision_use_head=False)
SAM: dict[str, Any] = dict(model_type="sam_vision_model", hidden_size=32, output_channels=16, num_hidden_layers=2)
SAM |= dict(
    num_attention_heads=4, image_size=2 * SIDE, patch_size=8, window_size=4, global_attn_indexes=[1], mlp_dim=48
)


def config() -> Any:
    text = TEXT | dict(model_type="llama")
    return DeepseekVLHybridConfig(
        vision_config=SIGLIP, high_res_vision_config=SAM, text_config=text, image_token_id=IMAGE
    )


def images(config: Any) -> dict[str, Any]:
    small, large = torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 3, 2 * SIDE, 2 * SIDE)
    return {"pixel_values": small, "high_res_pixel_values": large}
