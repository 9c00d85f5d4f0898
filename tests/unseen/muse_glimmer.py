"""Muse Glimmer: its tower has windows and puts 2x2 patches together; one layer of four has no positions, the others slide."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MuseGlimmerConfig

from unseen import IMAGE, TEXT

VISION: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
VISION |= dict(patch_size=4, pos_emb_height=8, pos_emb_width=8, layer_types=["window_attention", "full_attention"])
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def config() -> Any:
    text = TEXT | dict(head_dim=16, layer_types=KINDS, layer_rope_theta=[10_000.0, 0, 10_000.0, 0], sliding_window=8)
    return MuseGlimmerConfig(
        vision_config=VISION,
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=101,
        out_hidden_size=128,
        projector_hidden_size=48,
    )


def images(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2 * 4 * 8, 2 * 3 * 4**2), "image_grid_thw": torch.tensor([[1, 4, 8]] * 2)}
