"""Janus: LLaVA with a tower and a projector of its own, no CLS token, and an image generator, which foveate leaves alone."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import llava_siglip

FAMILY = replace(
    llava_siglip.FAMILY,
    model_type="janus",
    alias="",
    tower_type="",
    tower=replace(
        llava_siglip.FAMILY.tower,
        module="vision_model",
        attention_end="projection_layer",
        output="aligner",
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
    ),
)
