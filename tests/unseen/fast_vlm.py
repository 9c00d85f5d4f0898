"""FastVLM: a network of timm's, in place of which another one with convolutions stands here."""

from __future__ import annotations

from typing import Any

import torch
from transformers import FastVlmConfig

from unseen import IMAGE, SIDE, TEXT

RESNET: dict[str, Any] = dict(model_type="resnet", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1])
RESNET |= dict(layer_type="basic", hidden_size=32)


def config() -> Any:
    return FastVlmConfig(vision_config=RESNET, text_config=TEXT | dict(model_type="qwen2"), image_token_index=IMAGE)


def images(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, SIDE, SIDE)}
