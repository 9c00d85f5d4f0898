"""Qwen2-VL in vLLM. Its tower is put together like that of Qwen2.5-VL, but for the rows of its attention's heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2VLModel

from foveate.models import qwen2_vl
from foveate.serving.vllm.engine import Engine
from foveate.serving.vllm.families.qwen2_5_vl import facts, forwards, parts, shape
from foveate.serving.vllm.graft import skeleton


class _Heads(nn.Module):
    """Queries, keys and values ``(R, 3 H d)`` of this process's heads: its linear layer alone gives a piece across them."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, rows: Tensor) -> Tensor:
        heads: Any = self.attention.split_qkv(self.attention.qkv(rows)[0][:, None])
        return torch.cat([each.flatten(1) for each in heads], dim=1)


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model."""
    base = parts(skeleton(Qwen2VLModel, model.config), model.visual)
    for block, own in zip(base.visual.blocks, model.visual.blocks):
        block.attn.qkv = _Heads(own.attn)
    return base


ENGINE = Engine(
    architecture="Qwen2VLForConditionalGeneration",
    stock="vllm.model_executor.models.qwen2_vl:Qwen2VLForConditionalGeneration",
    family=qwen2_vl.FAMILY,
    shape=shape,
    facts=facts,
    graft=graft,
    forwards=forwards,
)
