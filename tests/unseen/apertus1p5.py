"""Apertus 1.5: an image is words of a codebook, and so is sound."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Apertus1p5Config

from unseen import IMAGE, TEXT

SIDE = 8  # pixels, two along a token
CODEBOOK: dict[str, Any] = dict(codebook_size=16, embed_dim=8, latent_channels=8, base_channels=32, resolution=SIDE)
CODEBOOK |= dict(channel_multiplier=[1, 1], num_res_blocks=1, attn_resolutions=[], spatial_scale_factor=2)
SOUND: dict[str, Any] = dict(hidden_size=16, codebook_dim=16, codebook_size=8, num_filters=4, upsampling_ratios=[2, 2])
SOUND |= dict(decoder_hidden_size=32, decoder_intermediate_size=32, decoder_num_layers=1)
ROPE: dict[str, Any] = dict(rope_type="default", rope_theta=10_000.0)


def config() -> Any:
    return Apertus1p5Config(
        text_config=TEXT | dict(rope_parameters=ROPE),
        vision_config=CODEBOOK,
        audio_config=SOUND,
        image_token_id=IMAGE,
        audio_token_id=102,
        image_token_offset=64,
        audio_token_offset=80,
    )


def images(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, SIDE, SIDE), "image_sizes": torch.tensor([[SIDE, SIDE]] * 2)}
