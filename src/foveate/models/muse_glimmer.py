"""Muse Glimmer: stock code puts patches of a packed row together; methods act in its language model, with sliding layers."""

from __future__ import annotations

from foveate.models.language_only import language_only
from foveate.models.refused import PACKED

FAMILY = language_only("muse_glimmer", "vision_tower", PACKED)
