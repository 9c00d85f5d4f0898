"""Llama 4: methods act in its language model, some of whose layers see a chunk of the prompt alone."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import language_only

FAMILY = language_only(
    "llama4",
    "vision_model",
    "the class token of its vision tower stands behind the patches",
    Decoder(module="language_model.model", ffn="feed_forward"),
    base="",
)
