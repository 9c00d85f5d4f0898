"""Mistral Small 3: Pixtral's tower, whose patches the projector puts together between its norm and its linear layers. The text
model may be Ministral 3, which scales queries by position."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import llava_pixtral

FAMILY = replace(
    llava_pixtral.FAMILY,
    model_type="mistral3",
    alias="",
    tower=replace(
        llava_pixtral.FAMILY.tower,
        joins="before",
        neck=("multi_modal_projector.patch_merger.merging_layer", "multi_modal_projector.linear_1"),
        output="multi_modal_projector.linear_2",
        unit=lambda config: llava_pixtral.side(config) ** 2,
    ),
)
