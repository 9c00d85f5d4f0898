"""HunyuanOCR: its projector puts the ends of lines between tokens; methods act in its language model."""

from __future__ import annotations

from foveate.models.language_only import language_only
from foveate.models.refused import LINES

FAMILY = language_only("hunyuan_vl", "vision_tower", LINES)
