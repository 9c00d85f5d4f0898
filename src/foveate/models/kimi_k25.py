"""Kimi K2.5: methods act in its language model, DeepSeek-V3's, whose cache holds what keys and values are made of."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import language_only

FAMILY = language_only(
    "kimi_k25",
    "vision_tower",
    "its vision tower averages the frames of a video and puts patches together that stand in raster order in one row for "
    "all images",
    Decoder(query="q_b_proj", complete=("router_logits",)),
    videos=True,
)
