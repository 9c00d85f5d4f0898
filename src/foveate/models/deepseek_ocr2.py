"""DeepSeek-OCR 2: SAM's tower, convolutions and an encoder with queries make its tokens; methods act in its language model."""

from __future__ import annotations

from foveate.models.language_only import language_only
from foveate.models.refused import SAM

FAMILY = language_only("deepseek_ocr2", "vision_tower", SAM)
