"""SmolVLM in vLLM."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from transformers import SmolVLMModel

from foveate.models import smolvlm
from foveate.serving.vllm.families import idefics3

ENGINE = replace(
    idefics3.ENGINE,
    architecture="SmolVLMForConditionalGeneration",
    stock="vllm.model_executor.models.smolvlm:SmolVLMForConditionalGeneration",
    family=smolvlm.FAMILY,
    graft=partial(idefics3.graft, SmolVLMModel),
)
