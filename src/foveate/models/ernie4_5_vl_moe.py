"""ERNIE 4.5 VL: experts of their own for images; methods act in its language model."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import USUAL, language_only

FAMILY = language_only(
    "ernie4_5_vl_moe",
    "vision_tower",
    "a resampler joins the tokens of every two frames of a video after they have been made",
    Decoder(layer_args={**USUAL.layer_args, "moe_mm_token_type_ids": -1}),
)
