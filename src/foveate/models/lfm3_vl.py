"""LFM3-VL: methods act in its language model, most layers of which have a short convolution in place of attention."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import lfm2_vl
from foveate.models.language_only import language_only

FAMILY = language_only(
    "lfm3_vl",
    "vision_tower",
    "some blocks of its vision tower are convolutions over the whole grid of patches, which must have no holes",
    replace(lfm2_vl.FAMILY.decoder, attention_end="o_proj", kinds="layer_types"),
    videos=True,
)
