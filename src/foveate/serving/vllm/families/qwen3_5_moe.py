"""Qwen3.5-MoE in vLLM."""

from __future__ import annotations

from dataclasses import replace

from transformers import Qwen3_5MoeModel

from foveate.models import qwen3_5_moe
from foveate.serving.vllm.families import qwen3_5, qwen3_vl
from foveate.serving.vllm.graft import skeleton

ENGINE = replace(
    qwen3_5.ENGINE,
    architecture="Qwen3_5MoeForConditionalGeneration",
    stock="vllm.model_executor.models.qwen3_5:Qwen3_5MoeForConditionalGeneration",
    family=qwen3_5_moe.FAMILY,
    graft=lambda model: qwen3_vl.embedded(skeleton(Qwen3_5MoeModel, model.config), model.visual),
)
