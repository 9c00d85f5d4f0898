"""Cosmos3 Edge: SigLIP 2 over grids of any size in a packed row, the merger of Qwen3-VL, and a plain FFN in the decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveate.models import qwen2_vl
from foveate.models.family import Args, Kwargs, Tower, argument


def _around(tower: Any, args: Args, kwargs: Kwargs) -> int:
    """The embedding of patches, which is a linear layer."""
    return int(2 * argument(args, kwargs, 0, "pixel_values").numel() * tower.config.hidden_size)


FAMILY = replace(
    qwen2_vl.FAMILY,
    model_type="cosmos3_edge",
    tower=Tower(
        module="visual",
        layout="packed",
        output="projector",
        unit=qwen2_vl.FAMILY.tower.unit,
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
        grid=qwen2_vl.FAMILY.tower.grid,
        resize=None,
        around=_around,
        block_args={"cu_seqlens": "seqlens"},
    ),
)
