"""Video-LLaVA: LLaVA with a tower for images and another one for videos, which foveate leaves alone."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import llava

FAMILY = replace(llava.FAMILY, model_type="video_llava", tower=replace(llava.FAMILY.tower, module="image_tower"))
