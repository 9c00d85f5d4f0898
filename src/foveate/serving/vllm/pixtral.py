"""Pixtral's tower of vLLM in that of transformers, which has all images in one row, and the images of families that have it: in
prompts each line of them ends with text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foveate.models.llava_pixtral import side
from foveate.serving.plan import Item
from foveate.serving.vllm.graft import WHOLE, Part, settle, unfused
from foveate.serving.vllm.prompt import INSIDE


def shape(config: Any, modality: str, data: Mapping[str, Any], features: int) -> Item:
    """Of an image that comes with its pixels ``(3, H, W)`` or, where nobody keeps these, with the text that ends its lines."""
    if "pixel_values" in data:
        width = data["pixel_values"].shape[-1] // config.vision_config.patch_size // side(config)
    else:
        width = int((data[INSIDE] >= 0).int().argmax())
    height = features // width
    grid = ((1, height, width),)
    return Item(grid, grid, gaps=tuple((line * width, 1) for line in range(1, height + 1)))


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
        kernel = weight.shape[-2:]
        rows = nn.functional.unfold(pixel_values, kernel, stride=kernel).transpose(1, 2)
        if self.own.input_norm is not None:
            rows = self.own.input_norm(rows.flatten(0, 1), weight.dtype)
        down, across = (n // patch for n, patch in zip(pixel_values.shape[-2:], kernel))
        made: Tensor = nn.functional.linear(rows, weight.flatten(1))
        return made.view(len(pixel_values), down, across, -1).permute(0, 3, 1, 2)


def parts(tower: Any, own: Any) -> None:
    """Put the parts of ``own``, vLLM's tower, into ``tower``. vLLM's has the blocks that its output needs."""
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


def forwards(
    model: Any, base: Any, after: Callable[[Tensor], Tensor] = lambda rows: rows
) -> list[tuple[Any, Callable[..., Any]]]:
    """vLLM's tower gives what that of ``base`` gives, as ``after (1, P, C)`` changes it: ``(patches, C)`` of each image."""
    own, patch = model.vision_tower, model.config.vision_config.patch_size

    def forward(pixel_values: Sequence[Tensor], **_: Any) -> tuple[Tensor, ...]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in pixel_values]
        whole = own.patch_conv.weight.new_zeros(len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
        for canvas, image, (height, width) in zip(whole, pixel_values, sizes):
            canvas[:, :height, :width] = image
        rows = after(base.vision_tower(whole, image_sizes=sizes).last_hidden_state)[0]
        images: tuple[Tensor, ...] = rows.split([(height // patch) * (width // patch) for height, width in sizes])
        return images

    return [(own, forward)]
