"""GLM-OCR in vLLM: GLM-4.1V's tower without position embeddings, and with norms of queries and keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import GlmOcrModel

from foveate.serving.vllm.families import glm4v
from foveate.serving.vllm.graft import Part, skeleton


class _OfHeads(Part):
    """A norm of queries or keys, which stock code gives as a view; kernels of norms take rows one after another."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        (heads,) = args
        return super().forward(heads.contiguous())


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model."""
    base = glm4v.parts(skeleton(GlmOcrModel, model.config), model.visual)
    for block, own in zip(base.visual.blocks, model.visual.blocks):
        block.attn.q_norm, block.attn.k_norm = _OfHeads(own.attn.q_norm), _OfHeads(own.attn.k_norm)
    return base


ENGINE = replace(
    glm4v.ENGINE,
    architecture="GlmOcrForConditionalGeneration",
    stock="vllm.model_executor.models.glm_ocr:GlmOcrForConditionalGeneration",
    graft=graft,
)
