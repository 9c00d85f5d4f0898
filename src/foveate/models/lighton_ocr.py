"""LightOnOCR: Mistral Small 3 with other names and Qwen3; its prompts have no tokens at the ends of lines."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import mistral3

FAMILY = replace(
    mistral3.FAMILY,
    model_type="lighton_ocr",
    tower=replace(
        mistral3.FAMILY.tower,
        module="vision_encoder",
        neck=("vision_projection.patch_merger.merging_layer", "vision_projection.linear_1"),
        output="vision_projection.linear_2",
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
    ),
)
