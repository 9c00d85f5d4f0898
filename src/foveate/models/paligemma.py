"""PaliGemma: SigLIP, a pointwise projector, and a prompt that sees all of itself (prefix-LM); positions count from 1.

The base model makes the attention masks. PaliGemma 2, on Gemma 2, has sliding layers and soft-capped attention besides."""

from __future__ import annotations

from dataclasses import replace

from foveate.models import llava_siglip

FAMILY = replace(
    llava_siglip.FAMILY,
    model_type="paligemma",
    alias="",
    tower=replace(llava_siglip.FAMILY.tower, last_block=lambda config: config.vision_config.num_hidden_layers - 1),
)
