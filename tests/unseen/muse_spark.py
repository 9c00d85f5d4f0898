"""Muse Spark: Muse Glimmer's tower, and a language model with experts, whose residual stream has gates; sound, too."""

from __future__ import annotations

from typing import Any

from transformers import MuseSparkConfig

from unseen import IMAGE, TEXT
from unseen.muse_glimmer import KINDS, VISION, images

__all__ = ["config", "images"]
EXPERTS: dict[str, Any] = dict(num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, moe_hidden_size=32)
SOUND: dict[str, Any] = dict(patch_sizes=[4, 4], hidden_sizes=[8, 16], depths=[1, 1], num_hidden_layers=2)


def config() -> Any:
    text = TEXT | EXPERTS | dict(head_dim=16, layer_types=KINDS, layer_rope_theta=[10_000.0, 0] * 2, sliding_window=8)
    return MuseSparkConfig(
        vision_config=VISION,
        text_config=text | dict(mlp_layer_types=["dense", "sparse", "sparse", "sparse"]),
        audio_config=SOUND | dict(out_hidden_size=64),
        image_token_id=IMAGE,
        video_token_id=101,
        audio_token_id=102,
        out_hidden_size=128,
        projector_hidden_size=48,
    )
