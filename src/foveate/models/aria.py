"""Aria: learned queries look at the image, and a language model with experts reads what they found."""

from __future__ import annotations

from foveate.models.language_only import QUERIES, language_only

FAMILY = language_only("aria", "vision_tower", QUERIES)
