"""DeepSeek-OCR 2: SAM's tower, convolutions and learned queries make its tokens; methods act in its language model."""

from __future__ import annotations

from foveate.models.family import Decoder
from foveate.models.language_only import SAM, language_only

FAMILY = language_only(
    "deepseek_ocr2",
    "vision_tower",
    SAM,
    Decoder(complete=("router_logits",)),
)
