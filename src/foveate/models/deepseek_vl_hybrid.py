"""DeepSeek-VL 7B: two towers, SigLIP and SAM, look at every image; methods act in its language model."""

from __future__ import annotations

from foveate.models.language_only import language_only

FAMILY = language_only(
    "deepseek_vl_hybrid", "vision_model", "two vision towers look at every image, and their features are joined"
)
