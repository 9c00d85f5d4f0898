"""Gemma 4 without a tower: a linear layer makes a token of a patch. An image sees all of itself where layers slide."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Gemma4UnifiedConfig

from unseen import IMAGE, TEXT

HEIGHT, WIDTH, PATCH = 3, 5, 4
KINDS = ["sliding_attention", "full_attention"] * 2
VISION: dict[str, Any] = dict(patch_size=PATCH, pooling_kernel_size=1, mm_embed_dim=32, mm_posemb_size=8)


def config() -> Any:
    text = TEXT | dict(head_dim=16, layer_types=KINDS, sliding_window=8)
    ids = dict(image_token_id=IMAGE, video_token_id=101, audio_token_id=102)
    return Gemma4UnifiedConfig(text_config=text, vision_config=VISION | dict(output_proj_dims=32), **ids)


def images(config: Any) -> dict[str, Any]:
    places = torch.cartesian_prod(torch.arange(HEIGHT), torch.arange(WIDTH)).flip(1)  # x, y
    patches = torch.randn(2, HEIGHT * WIDTH, 3 * PATCH**2)
    return {"pixel_values": patches, "image_position_ids": places.expand(2, -1, -1)}


def video(batch: dict[str, Any]) -> dict[str, Any]:
    return {"num_frames_per_video": torch.tensor([1])}
