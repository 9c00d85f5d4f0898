"""LFM2-VL: SigLIP 2's tower takes patches; of four layers two have a short convolution in place of attention."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Lfm2VlConfig

from unseen import IMAGE, TEXT

HEIGHT, WIDTH, PATCH = 4, 8, 4
VISION: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
VISION |= dict(model_type="siglip2_vision_model", patch_size=PATCH, num_patches=64, vision_use_head=False)


def config() -> Any:
    text = TEXT | dict(model_type="lfm2", layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False)
    return Lfm2VlConfig(vision_config=VISION, text_config=text, projector_hidden_size=48, image_token_id=IMAGE)


def images(config: Any) -> dict[str, Any]:
    return {
        "pixel_values": torch.randn(2, HEIGHT * WIDTH, 3 * PATCH**2),
        "spatial_shapes": torch.tensor([[HEIGHT, WIDTH]] * 2),
        "pixel_attention_mask": torch.ones(2, HEIGHT * WIDTH, dtype=torch.long),
    }
