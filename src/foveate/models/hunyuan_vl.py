"""HunyuanVL: its merger puts marks between the tokens; methods act in its language model."""

from __future__ import annotations

from foveate.models.language_only import language_only

FAMILY = language_only(
    "hunyuan_vl",
    "vision_tower",
    "its projector takes one image at a time and puts the ends of lines between the tokens itself",
)
