"""Qwen3-VL-MoE in vLLM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import Qwen3VLMoeModel

from foveate.models import qwen3_vl_moe
from foveate.serving.vllm.families import qwen3_vl
from foveate.serving.vllm.graft import skeleton


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model."""
    return qwen3_vl.parts(skeleton(Qwen3VLMoeModel, model.config), model.visual)


ENGINE = replace(
    qwen3_vl.ENGINE,
    architecture="Qwen3VLMoeForConditionalGeneration",
    stock="vllm.model_executor.models.qwen3_vl_moe:Qwen3VLMoeForConditionalGeneration",
    family=qwen3_vl_moe.FAMILY,
    graft=graft,
)
