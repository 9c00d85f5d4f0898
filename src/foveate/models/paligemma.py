"""PaliGemma: SigLIP, a pointwise projector, and a prompt that sees all of itself (prefix-LM); positions count from 1.

The base model makes the attention masks. PaliGemma 2, on Gemma 2, has sliding layers and soft-capped attention besides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.models import llava
from foveate.models.family import Grid


def _segments(config: Any, grid: Grid, block: int) -> list[int]:
    return [height * width for _, height, width in grid]


FAMILY = replace(
    llava.FAMILY,
    model_type="paligemma",
    tower_type="",
    tower=replace(
        llava.FAMILY.tower,
        leading=0,
        kept_rows=lambda config: 0,
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
        segments=_segments,
    ),
)
