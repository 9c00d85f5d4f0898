"""Granite-Docling: methods act in its language model, which adds features of several blocks between its layers."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import language_only

FAMILY = language_only(
    "granite_docling",
    "vision_model",
    "the prompt decides how many tokens a tile has, and which of two connectors makes them",
    Decoder(module="text_model", deepstack=("deepstack_visual_embeds", "visual_pos_masks")),
)
