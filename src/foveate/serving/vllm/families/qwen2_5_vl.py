"""Qwen2.5-VL in vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLModel

from foveate.models import qwen2_5_vl
from foveate.serving.plan import Item
from foveate.serving.vllm.engine import Engine, rows_of
from foveate.serving.vllm.graft import Part, attention_name, settle, skeleton


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """Of an image or video that comes with ``{modality}_grid_thw``, in patches."""
    merge = config.vision_config.spatial_merge_size
    t, h, w = (int(n) for n in data[f"{modality}_grid_thw"])
    grid = ((t, h // merge, w // merge),)
    return Item(grid, grid)


facts = partial(rows_of, names=(("image", "image_grid_thw"), ("video", "video_grid_thw")))


def parts(base: Any, visual: Any) -> Any:
    """Put the parts of vLLM's tower ``visual`` into that of ``base``."""
    tower = base.visual
    tower.patch_embed, tower.merger = Part(visual.patch_embed), Part(visual.merger)
    for block, own in zip(tower.blocks, visual.blocks):
        block.norm1, block.norm2, block.mlp = Part(own.norm1), Part(own.norm2), Part(own.mlp)
        block.attn.qkv, block.attn.proj = Part(own.attn.qkv), Part(own.attn.proj)
        block.attn.kernel, block.attn.num_heads = own.attn.attn, own.attn.num_attention_heads_per_partition
    tower.config._attn_implementation_internal = attention_name(visual.blocks[0].attn.attn)
    settle(tower, visual.device)
    return base


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model."""
    return parts(skeleton(Qwen2_5_VLModel, model.config), model.visual)


def encode(visual: Any, base: Any, x: Tensor, grid_thw: Any) -> Any:
    """Return what the tower of ``base`` makes of what vLLM gives its own, ``visual``."""
    grid = grid_thw if isinstance(grid_thw, Tensor) else torch.tensor(grid_thw)
    pixels = visual.input_norm(x.to(visual.device), visual.dtype)
    return base.visual(pixels, grid_thw=grid.to(visual.device))


def forwards(model: Any, base: Any) -> list[tuple[Any, Callable[..., Any]]]:
    """vLLM's tower gives what that of ``base`` gives."""
    visual = model.visual

    def forward(x: Tensor, grid_thw: Any, **_: Any) -> Tensor:
        out: Tensor = encode(visual, base, x, grid_thw).pooler_output
        return out

    return [(visual, forward)]


ENGINE = Engine(
    architecture="Qwen2_5_VLForConditionalGeneration",
    stock="vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration",
    family=qwen2_5_vl.FAMILY,
    shape=shape,
    facts=facts,
    graft=graft,
    forwards=forwards,
)
