"""Unlimited-OCR: SAM's tower and convolutions make its tokens; methods act in its language model."""

from __future__ import annotations

from foveate.models.language_only import language_only
from foveate.models.refused import SAM

FAMILY = language_only("unlimited_ocr", "vision_tower", SAM)
