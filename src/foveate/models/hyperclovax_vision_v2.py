"""HyperCLOVA X SEED: Qwen2.5-VL's tower, a linear layer behind its merger, and positions that count tokens in one row."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import qwen2_5_vl

FAMILY = replace(
    qwen2_5_vl.FAMILY,
    model_type="hyperclovax_vision_v2",
    tower=replace(qwen2_5_vl.FAMILY.tower, module="vision_model", output="vision_model.merger", tail=("projector",)),
)
