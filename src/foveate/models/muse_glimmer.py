"""Muse Glimmer: its tower has windows, and puts patches of all images together in one row; methods act in its language model.

Most layers slide, and the others have no positions."""

from __future__ import annotations

from foveate.models.language_only import PACKED, language_only

FAMILY = language_only(
    "muse_glimmer",
    "vision_tower",
    PACKED,
    videos=True,
)
