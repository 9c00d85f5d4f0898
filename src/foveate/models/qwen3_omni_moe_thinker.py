"""The thinker of Qwen3-Omni: like Qwen3-VL-MoE, with an ear, and without timestamps: positions of a video are seconds. Sound is
what it is in Qwen2.5-Omni. Of a whole Qwen3-Omni, compress ``model.thinker``."""

from __future__ import annotations

from dataclasses import replace

from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as stock

from foveate.models import qwen3_vl_moe

# In older transformers the model with the head joins vision and text itself.
NESTED = hasattr(stock, "Qwen3OmniMoeThinkerModel")

FAMILY = replace(
    qwen3_vl_moe.FAMILY,
    model_type="qwen3_omni_moe_thinker",
    base="model" if NESTED else "",
    decoder=replace(qwen3_vl_moe.FAMILY.decoder, module="language_model" if NESTED else "model"),
    tower=replace(qwen3_vl_moe.FAMILY.tower, taps="visual.merger_list"),
)
