"""Aya Vision: built like Command A Vision, with a norm in the projector and a choice of the block whose output is used."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import cohere2_vision, llava_siglip

FAMILY = replace(
    cohere2_vision.FAMILY,
    model_type="aya_vision",
    tower=replace(cohere2_vision.FAMILY.tower, states=True, last_block=llava_siglip.FAMILY.tower.last_block),
)
