"""Kimi K2.5: its tower averages frames and puts patches together; methods act in its language model."""

from __future__ import annotations

from foveate.models.language_only import language_only

FAMILY = language_only(
    "kimi_k25",
    "vision_tower",
    "its vision tower averages the frames of a video and puts patches together that stand in raster order in one row for all "
    "images",
)
