"""LLaVA-1.5 in vLLM, with a CLIP, a SigLIP or a Pixtral tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from transformers import LlavaModel

from foveate.models import llava, llava_pixtral, llava_siglip
from foveate.serving.plan import Item
from foveate.serving.vllm import padded, pixtral
from foveate.serving.vllm.engine import Engine, rows_of
from foveate.serving.vllm.graft import Part, skeleton


def _rows(config: Any) -> bool:
    return bool(config.vision_config.model_type == "pixtral")


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """All images have one size, but for Pixtral. A CLS token that the projector lets through stands before them."""
    if _rows(config):
        return pixtral.shape(config, modality, data, features)
    side = config.vision_config.image_size // config.vision_config.patch_size
    grid, kept = ((1, side, side),), ENGINE.family_of(config).tower.kept_rows(config)
    return Item(grid, grid, gaps=((0, kept),) if kept else ())


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model, with vLLM's tower and projector."""
    if not _rows(model.config):
        return padded.up_to_projector(LlavaModel, model)
    base = skeleton(LlavaModel, model.config)
    pixtral.parts(base.vision_tower, model.vision_tower)
    projector, theirs = base.multi_modal_projector, model.multi_modal_projector
    projector.linear_1, projector.act, projector.linear_2 = Part(theirs.linear_1), theirs.act, Part(theirs.linear_2)
    return base


def forwards(model: Any, base: Any) -> list[tuple[Any, Callable[..., Any]]]:
    """vLLM's tower gives what that of ``base`` gives; Pixtral's with the projector, behind which all rows are there again."""
    if not _rows(model.config):
        return padded.forwards(model, base)
    after = base.multi_modal_projector.__call__
    return [*pixtral.forwards(model, base, after), (model.multi_modal_projector, lambda rows: rows)]


ENGINE = Engine(
    architecture="LlavaForConditionalGeneration",
    stock="vllm.model_executor.models.llava:LlavaForConditionalGeneration",
    family=llava.FAMILY,
    variants=(llava_siglip.FAMILY, llava_pixtral.FAMILY),
    shape=shape,
    facts=partial(rows_of, names=(("image", "pixel_values"),)),
    graft=graft,
    forwards=forwards,
)
