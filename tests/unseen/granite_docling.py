"""Granite-Docling: two connectors, and features of several blocks that are added between decoder layers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GraniteDoclingConfig

from unseen import IMAGE, SIDE, TEXT

VISION: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
VISION |= dict(image_size=SIDE, patch_size=4, out_hidden_size=64, scale_factor=2, deepstack_visual_indexes=[0, 1])


def config() -> Any:
    return GraniteDoclingConfig(vision_config=VISION, text_config=TEXT, image_token_id=IMAGE, pad_token_id=0)


def images(config: Any) -> dict[str, Any]:
    tiles = torch.randn(2, 1, 3, SIDE, SIDE)  # (prompts, tiles, 3, height, width)
    return {"pixel_values": tiles, "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool)}
