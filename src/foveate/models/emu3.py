"""Emu3: an image is words of a codebook, which the language model reads like others."""

from __future__ import annotations

from foveate.models.language_only import WORDS, language_only

FAMILY = language_only("emu3", "vqmodel", WORDS, "text_model")
