"""PerceptionLM: a tower of timm's, in place of which another one stands here, as foveate looks at what comes after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PerceptionLMConfig

from unseen import IMAGE, SIDE, TEXT

CLIP: dict[str, Any] = dict(
    model_type="clip_vision_model", hidden_size=32, intermediate_size=48, model_args={"embed_dim": 32}
)
CLIP |= dict(num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=8)


def config() -> Any:
    text = TEXT | dict(model_type="llama")
    made = PerceptionLMConfig(vision_config=CLIP, text_config=text, image_token_id=IMAGE, video_token_id=101)
    if made.vision_config.model_type == "timm_wrapper":  # older ones say so, whatever they are given
        pytest.importorskip("timm")
    return made


def images(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 1, 3, SIDE, SIDE)}  # (prompts, tiles, 3, height, width)
