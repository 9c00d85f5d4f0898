"""DeepSeek-VL of 7B: the features of two towers are joined; methods act in its Llama."""

from __future__ import annotations

from foveate.models.language_only import language_only

FAMILY = language_only(
    "deepseek_vl_hybrid", "vision_model", "two vision towers look at every image, and their features are joined"
)
