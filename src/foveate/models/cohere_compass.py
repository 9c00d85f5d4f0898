"""North Micro Vision: Qwen3-VL's tower and deepstack around Command R, whose layers are of two kinds and run attention and FFN
side by side."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import qwen3_vl

FAMILY = replace(
    qwen3_vl.FAMILY,
    model_type="cohere_compass",
    decoder=replace(qwen3_vl.FAMILY.decoder, kinds="layer_types"),
)
