"""Muse Spark: Muse Glimmer's tower; methods act in its language model, which has experts and gates on its residual stream."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import PACKED, language_only

FAMILY = language_only(
    "muse_spark",
    "vision_tower",
    PACKED,
    Decoder(complete=("router_logits",)),
    videos=True,
)
