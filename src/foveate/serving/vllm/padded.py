"""Towers of vLLM that are built as CLIP's, in those of transformers, and the images of the families that have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from foveate.models.family import View
from foveate.serving.plan import Item
from foveate.serving.vllm.graft import WHOLE, Part, skeleton, unfused


def clip(tower: Any, own: Any) -> None:
    """Put the parts of ``own``, a CLIP or SigLIP tower, into ``tower``.

    vLLM's has the blocks that its output needs, and no norm after them.
    """
    tower.embeddings.patch_embedding = Part(own.embeddings.patch_embedding)
    for name in ("class_embedding", "position_embedding", "position_ids"):
        if hasattr(own.embeddings, name):
            setattr(tower.embeddings, name, getattr(own.embeddings, name))
    if hasattr(own, "pre_layrnorm"):
        tower.pre_layrnorm = own.pre_layrnorm
    tower.post_layernorm, tower.use_head = nn.Identity(), False
    blocks(tower, own)


def blocks(tower: Any, own: Any) -> None:
    """Put the blocks of ``own`` into ``tower``, which has as many or more."""
    tower.encoder.layers = tower.encoder.layers[: len(own.encoder.layers)]
    for block, part in zip(tower.encoder.layers, own.encoder.layers):
        block.layer_norm1, block.layer_norm2, block.mlp = part.layer_norm1, part.layer_norm2, Part(part.mlp)
        attention, theirs = block.self_attn, part.self_attn
        attention.q_proj, attention.k_proj, attention.v_proj = unfused(theirs.qkv_proj)
        attention.out_proj, attention.kernel = Part(theirs.out_proj), theirs.attn
    tower.config._attn_implementation_internal = WHOLE


def up_to_projector(cls: Any, model: Any) -> Any:
    """Return the vision side of ``cls``, the base model of a LLaVA, with vLLM's tower and projector."""
    base = before_projector(cls, model)
    base.multi_modal_projector = model.multi_modal_projector
    return base


def before_projector(cls: Any, model: Any) -> Any:
    """The same without the projector, for families that arrange its rows: in the tower, all of them are restored."""
    base = skeleton(cls, model.config)
    clip(base.vision_tower, model.vision_tower.vision_model)
    base.multi_modal_projector = nn.Identity()
    return base


def forwards(model: Any, base: Any) -> list[tuple[Any, Callable[..., Tensor]]]:
    """Return what the tower of a LLaVA is to run: ``(images, rows, C)`` of the selected layer, which is the last one it has."""

    def forward(pixel_values: Tensor, *, feature_select_strategy: str | None = None, **_: Any) -> Tensor:
        rows: Tensor = base.vision_tower(pixel_values).last_hidden_state
        rows = rows[:, 1:] if feature_select_strategy == "default" else rows
        if isinstance(base.multi_modal_projector, nn.Identity):
            rows = base.multi_modal_projector(rows)  # where the runtime expects the tower to end
        return rows

    return [(model.vision_tower, forward)]


def last_rows(own: Any, base: Any) -> list[tuple[Any, Callable[..., Tensor]]]:
    """Return what the tower ``own`` is to run: ``(images, rows, C)`` after all blocks, special ones included."""

    def forward(pixel_values: Tensor) -> Tensor:
        rows: Tensor = base.vision_tower(pixel_values).last_hidden_state
        return rows

    return [(own, forward)]


def tiled(tiles: View, side: int, count: int) -> Item:
    """Return a whole view of ``side * side`` features, and ``tiles`` put together, with a newline after each line.

    Args:
        count: of the tower's images, the whole view included.
    """
    return Item(
        grid=((1, side, side), (1, tiles.height, tiles.width)),
        tower=((1, side, side),) * count,
        gaps=tuple((side**2 + line * tiles.width, 1) for line in range(1, tiles.height + 1)),
    )
