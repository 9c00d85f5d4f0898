"""Emu3: an image is words of a codebook, and a word for the end of each line."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Emu3Config

from unseen import IMAGE, TEXT

WORDS = {f"<|visual token {i:06d}|>": 64 + i for i in range(16)}
CODEBOOK: dict[str, Any] = dict(codebook_size=16, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1)
CODEBOOK |= dict(hidden_size=32, attn_resolutions=[])
SIDE = 8  # pixels, two along a token


def config() -> Any:
    words = WORDS | {"<image>": IMAGE, "<|extra_200|>": 101}
    text = TEXT | dict(attention_dropout=0.0)
    return Emu3Config(vq_config=CODEBOOK, text_config=text, vocabulary_map=words)


def images(config: Any) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, SIDE, SIDE), "image_sizes": torch.tensor([[SIDE, SIDE]] * 2)}
