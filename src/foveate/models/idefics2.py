"""Idefics2: learned queries look at the image, and Mistral reads what they found."""

from __future__ import annotations

from foveate.models.language_only import QUERIES, language_only

FAMILY = language_only("idefics2", "vision_model", QUERIES, "text_model")
