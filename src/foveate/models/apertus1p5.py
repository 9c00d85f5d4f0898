"""Apertus 1.5: an image is words of a codebook, which the language model reads like others."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import WORDS, language_only

FAMILY = language_only(
    "apertus1p5",
    "vision_tokenizer",
    WORDS,
    Decoder(attention_norm="attention_layernorm", gated=()),
)
