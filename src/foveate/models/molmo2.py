"""Molmo 2: attention pools patches of several blocks; methods act in its language model."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import language_only

FAMILY = language_only(
    "molmo2",
    "vision_tower",
    "a layer of attention pools patches out of the features of several blocks of its vision tower at once",
    Decoder(attention_norm=""),
)
