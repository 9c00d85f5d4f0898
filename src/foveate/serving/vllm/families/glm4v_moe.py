"""GLM-4.5V in vLLM."""

from __future__ import annotations

from dataclasses import replace

from transformers import Glm4vMoeModel

from foveate.models import glm4v_moe
from foveate.serving.vllm.families import glm4v
from foveate.serving.vllm.graft import skeleton

ENGINE = replace(
    glm4v.ENGINE,
    architecture="Glm4vMoeForConditionalGeneration",
    stock="vllm.model_executor.models.glm4_1v:Glm4vMoeForConditionalGeneration",
    family=glm4v_moe.FAMILY,
    graft=lambda model: glm4v.embedded(skeleton(Glm4vMoeModel, model.config), model.visual),
)
