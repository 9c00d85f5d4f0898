"""Molmo 2: attention pools 2x2 patches out of two blocks' rows, and adds what it finds to the placeholders' own words."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Molmo2Config

from unseen import IMAGE, TEXT

SIDE = 8  # patches along an image
VISION: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
VISION |= dict(num_key_value_heads=4, head_dim=8, image_size=[32, 32], patch_size=4, num_position_embeddings=SIDE**2)
ADAPTER: dict[str, Any] = dict(vision_feature_layer=[2, 1], hidden_size=32, num_attention_heads=4, head_dim=8)
ADAPTER |= dict(num_key_value_heads=4, intermediate_size=48, text_hidden_size=64)

SCALED: dict[str, Any] = dict(rope_type="linear", rope_theta=10_000.0, factor=4.0)


def config() -> Any:
    text = TEXT | dict(head_dim=16, additional_vocab_size=8, rope_scaling_layers=[0, 2], rope_parameters=SCALED)
    return Molmo2Config(
        vision_config=VISION, adapter_config=ADAPTER, text_config=text, image_patch_id=IMAGE, image_end_token_id=101
    )


def images(config: Any) -> dict[str, Any]:
    places = torch.arange(2 * SIDE**2).view(2, SIDE // 2, 2, SIDE // 2, 2).transpose(2, 3)
    return {
        "pixel_values": torch.randn(2, SIDE**2, 3 * 4**2),
        "image_token_pooling": places.reshape(-1, 4),
        "image_grids": torch.tensor([[SIDE // 2, SIDE // 2, 0, 0]] * 2),
    }


def row(batch: dict[str, Any], i: int) -> dict[str, Any]:
    places = batch["image_token_pooling"]
    return {**batch, "image_token_pooling": places - places.min()}


def video(batch: dict[str, Any]) -> dict[str, Any]:
    return {"video_grids": torch.tensor([[1, SIDE // 2, SIDE // 2]]), "mm_token_type_ids": batch["mm_token_type_ids"]}
