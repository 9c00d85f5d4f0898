"""Qwen3.5 in vLLM: the tower of Qwen3-VL without further features. Most decoder layers have a state, so tokens leave before all
of them or not at all."""

from __future__ import annotations

from dataclasses import replace

from transformers import Qwen3_5Model

from foveate.models import qwen3_5
from foveate.serving.vllm.families import qwen2_5_vl, qwen3_vl
from foveate.serving.vllm.graft import skeleton

ENGINE = replace(
    qwen2_5_vl.ENGINE,
    architecture="Qwen3_5ForConditionalGeneration",
    stock="vllm.model_executor.models.qwen3_5:Qwen3_5ForConditionalGeneration",
    family=qwen3_5.FAMILY,
    graft=lambda model: qwen3_vl.embedded(skeleton(Qwen3_5Model, model.config), model.visual),
)
