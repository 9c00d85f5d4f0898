"""DeepSeek-VL: SigLIP tower, pointwise projector, Llama."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import llava_siglip

FAMILY = replace(
    llava_siglip.FAMILY,
    model_type="deepseek_vl",
    alias="",
    tower=replace(
        llava_siglip.FAMILY.tower,
        module="vision_model",
        output="aligner",
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
    ),
)
