"""HunyuanVL: its merger puts marks at the ends of lines and of an image; positions have four axes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import HunYuanVLConfig

from unseen import IMAGE, TEXT

VISION: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
VISION |= dict(num_key_value_heads=4, out_hidden_size=64, text_hidden_size=64, patch_size=4, max_image_size=64)
ROPE: dict[str, Any] = dict(rope_type="default", rope_theta=10_000.0, mrope_section=[2, 2, 2, 2])


def config() -> Any:
    text = TEXT | dict(head_dim=16, rope_parameters=ROPE)
    return HunYuanVLConfig(vision_config=VISION, text_config=text, image_token_id=IMAGE)


def images(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2 * 4 * 8, 3 * 4**2), "image_grid_thw": torch.tensor([[1, 4, 8]] * 2)}
