"""Qwen3-VL in vLLM. Its tower gives further features beside each one, which the decoder adds after its first layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLModel

from foveate.models import qwen3_vl
from foveate.serving.vllm.engine import Engine
from foveate.serving.vllm.families import qwen2_5_vl
from foveate.serving.vllm.graft import Part, skeleton


def embedded(base: Any, visual: Any) -> Any:
    """Put the parts of vLLM's tower ``visual`` into that of ``base``, which gives no further features."""
    base.visual.pos_embed = Part(visual.pos_embed)
    return qwen2_5_vl.parts(base, visual)


def parts(base: Any, visual: Any) -> Any:
    """The same of a tower that does."""
    for i, merger in enumerate(visual.deepstack_merger_list):
        base.visual.deepstack_merger_list[i] = Part(merger)
    return embedded(base, visual)


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model."""
    return parts(skeleton(Qwen3VLModel, model.config), model.visual)


def forwards(model: Any, base: Any) -> list[tuple[Any, Callable[..., Any]]]:
    """vLLM's tower gives what that of ``base`` gives, the further features beside the others."""
    visual = model.visual

    def forward(x: Tensor, grid_thw: Any, **_: Any) -> Tensor:
        out = qwen2_5_vl.encode(visual, base, x, grid_thw)
        return torch.cat([out.pooler_output, *out.deepstack_features], dim=1)

    return [(visual, forward)]


def added(model: Any, tokens: int) -> list[Tensor]:
    """Return the further features of a step, at the places of their tokens, and zeros for text."""
    rows = [each.clone() for each in model._get_deepstack_input_embeds(tokens).tensors.values()]
    model._clear_deepstack_input_embeds(tokens)
    return rows


ENGINE = Engine(
    architecture="Qwen3VLForConditionalGeneration",
    stock="vllm.model_executor.models.qwen3_vl:Qwen3VLForConditionalGeneration",
    family=qwen3_vl.FAMILY,
    shape=qwen2_5_vl.shape,
    facts=qwen2_5_vl.facts,
    graft=graft,
    forwards=forwards,
    added=added,
)
