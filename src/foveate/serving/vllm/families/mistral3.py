"""Mistral Small 3 in vLLM: Pixtral's tower has all images in one row, and the projector puts patches together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import Mistral3Model

from foveate.models import mistral3
from foveate.serving.plan import Item
from foveate.serving.vllm.engine import Engine, rows_of
from foveate.serving.vllm.graft import WHOLE, Part, settle, skeleton, unfused
from foveate.serving.vllm.prompt import INSIDE


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """Of an image that comes with its pixels ``(3, H, W)`` or, where nobody keeps these, with the ends of its lines."""
    if "pixel_values" in data:
        width = data["pixel_values"].shape[-1] // config.vision_config.patch_size // config.spatial_merge_size
    else:
        width = int(data[INSIDE].int().argmin())
    grid = ((1, features // width, width),)
    return Item(grid, grid)


class _Patches(nn.Module):
    """Patches of images ``(I, 3, H, W)``, which vLLM may have left to normalise: ``(I, C, h, w)``."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own

    @property
    def weight(self) -> Tensor:
        """Stock code asks for its dtype."""
        weight: Tensor = self.own.patch_conv.weight
        return weight

    def forward(self, pixel_values: Tensor) -> Tensor:
        weight = self.weight
        side = weight.shape[-2:]
        rows = nn.functional.unfold(pixel_values, side, stride=side).transpose(1, 2)
        rows = self.own.input_norm(rows.flatten(0, 1), weight.dtype)
        down, across = (n // patch for n, patch in zip(pixel_values.shape[-2:], side))
        made: Tensor = nn.functional.linear(rows, weight.flatten(1))
        return made.view(len(pixel_values), down, across, -1).permute(0, 3, 1, 2)


def graft(model: Any) -> Any:
    """Return the vision side of transformers' model."""
    base, own = skeleton(Mistral3Model, model.config), model.vision_tower
    tower = base.vision_tower
    tower.patch_conv, tower.ln_pre = _Patches(own), Part(own.ln_pre)
    layers = tower.transformer.layers = tower.transformer.layers[: len(own.transformer.layers)]
    for block, part in zip(layers, own.transformer.layers):
        block.attention_norm, block.ffn_norm = Part(part.attention_norm), Part(part.ffn_norm)
        block.feed_forward = Part(part.feed_forward)
        attention, theirs = block.attention, part.attention
        attention.q_proj, attention.k_proj, attention.v_proj = unfused(theirs.qkv_proj)
        attention.o_proj, attention.kernel, attention.num_heads = Part(theirs.o_proj), theirs.attn, theirs.n_heads
    tower.config._attn_implementation_internal = WHOLE  # with a mask that keeps images apart
    settle(tower, own.patch_conv.weight.device)
    projector, theirs = base.multi_modal_projector, model.multi_modal_projector
    projector.norm, projector.patch_merger.merging_layer = Part(theirs.norm), theirs.patch_merger.merging_layer
    projector.linear_1, projector.act, projector.linear_2 = Part(theirs.linear_1), theirs.act, Part(theirs.linear_2)
    return base


def forwards(model: Any, base: Any) -> list[tuple[Any, Callable[..., Any]]]:
    """vLLM's tower and projector give what those of ``base`` give."""
    own, patch = model.vision_tower, model.config.vision_config.patch_size

    def forward(pixel_values: Sequence[Tensor], **_: Any) -> tuple[Tensor, ...]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in pixel_values]
        whole = own.patch_conv.weight.new_zeros(len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
        for canvas, image, (height, width) in zip(whole, pixel_values, sizes):
            canvas[:, :height, :width] = image
        rows: Tensor = base.vision_tower(whole, image_sizes=sizes).last_hidden_state[0]
        counts = [(height // patch) * (width // patch) for height, width in sizes]
        images: tuple[Tensor, ...] = rows.split(counts)
        return images

    return [(own, forward), (model.multi_modal_projector, base.multi_modal_projector.__call__)]


ENGINE = Engine(
    architecture="Mistral3ForConditionalGeneration",
    stock="vllm.model_executor.models.mistral3:Mistral3ForConditionalGeneration",
    family=mistral3.FAMILY,
    shape=shape,
    facts=partial(rows_of, names=(("image", "pixel_values"),)),
    graft=graft,
    forwards=forwards,
)
