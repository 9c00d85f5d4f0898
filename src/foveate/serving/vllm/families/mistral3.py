"""Mistral Small 3 in vLLM: the projector puts the patches of Pixtral's tower together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import Mistral3Model

from foveate.models import mistral3
from foveate.serving.vllm import pixtral
from foveate.serving.vllm.engine import Engine, rows_of
from foveate.serving.vllm.graft import Part, skeleton


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model."""
    base = skeleton(Mistral3Model, model.config)
    pixtral.parts(base.vision_tower, model.vision_tower)
    projector, theirs = base.multi_modal_projector, model.multi_modal_projector
    projector.norm, projector.patch_merger.merging_layer = Part(theirs.norm), theirs.patch_merger.merging_layer
    projector.linear_1, projector.act, projector.linear_2 = Part(theirs.linear_1), theirs.act, Part(theirs.linear_2)
    return base


def forwards(model: Any, base: Any) -> list[tuple[Any, Callable[..., Any]]]:
    """vLLM's tower and projector give what those of ``base`` give."""
    return [*pixtral.forwards(model, base), (model.multi_modal_projector, base.multi_modal_projector.__call__)]


ENGINE = Engine(
    architecture="Mistral3ForConditionalGeneration",
    stock="vllm.model_executor.models.mistral3:Mistral3ForConditionalGeneration",
    family=mistral3.FAMILY,
    shape=pixtral.shape,
    facts=partial(rows_of, names=(("image", "pixel_values"),)),
    graft=graft,
    forwards=forwards,
)
