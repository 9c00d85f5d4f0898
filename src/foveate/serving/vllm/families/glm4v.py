"""GLM-4.1V in vLLM. Its tower is put together like that of Qwen2.5-VL, with position embeddings, and a convolution that makes a
token of four patches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import Glm4vModel

from foveate.models import glm4v
from foveate.serving.vllm.families import qwen2_5_vl
from foveate.serving.vllm.graft import Part, skeleton


def parts(base: Any, visual: Any) -> Any:
    """Put the parts of vLLM's tower ``visual`` into that of ``base``."""
    tower = base.visual
    tower.post_layernorm, tower.downsample = Part(visual.post_layernorm), Part(visual.downsample)
    return qwen2_5_vl.parts(base, visual)


def embedded(base: Any, visual: Any) -> Any:
    """The same of a tower with position embeddings."""
    tower = base.visual
    tower.post_conv_layernorm = Part(visual.post_conv_layernorm)
    tower.embeddings.position_embedding = visual.embeddings.position_embedding
    return parts(base, visual)


ENGINE = replace(
    qwen2_5_vl.ENGINE,
    architecture="Glm4vForConditionalGeneration",
    stock="vllm.model_executor.models.glm4_1v:Glm4vForConditionalGeneration",
    family=glm4v.FAMILY,
    graft=lambda model: embedded(skeleton(Glm4vModel, model.config), model.visual),
)
