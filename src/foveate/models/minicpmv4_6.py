"""MiniCPM-V 4.6: images, their slices and the frames of videos stand one after another in a single row of the tower, each an
attention segment and a span of its own. After some blocks 2x2 patches become a row, and of 2x2 such rows the merger behind the
tower makes a token. The language model is Qwen3.5's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InputError, UnsupportedModelError
from foveate.models import qwen3_5
from foveate.models.family import NOWHERE, Args, Family, Grid, Kwargs, Merger, Tower, argument, resize_images


def _side(config: Any) -> int:
    """Patches along a side of a unit."""
    if config.merger_times != 1:
        raise UnsupportedModelError(
            f"foveate knows MiniCPM-V with a merger that merges once, not {config.merger_times} times as merger_times says"
        )
    return int(config.merge_kernel_size[0]) * math.isqrt(_merged(config))


def _merged(config: Any) -> int:
    """Patches that become a row in the middle of the tower."""
    return 1 if config.downsample_mode == "4x" else math.prod(config.vision_config.window_kernel_size)


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    merges = kwargs.get("use_vit_merger", True)
    if merges != (_merged(config) > 1):
        raise InputError(
            f'this call asks for downsample_mode="{"16x" if merges else "4x"}", and the model\'s config says '
            f'"{config.downsample_mode}": set it there, before a method is put on the model'
        )
    side, sizes = _side(config), argument(args, kwargs, 1, "target_sizes").tolist()
    if any(height % side or width % side for height, width in sizes):
        raise InputError(
            f"images of {sizes} patches do not divide into squares of {side} x {side}, of which this model makes one token "
            "each: give it the sizes that its processor makes"
        )
    return [(1, height // side, width // side) for height, width in sizes]


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    # An image is a strip of its patches, all of them in a row, and a batch one strip after another.
    pixels, sizes = argument(args, kwargs, 0, "pixel_values"), argument(args, kwargs, 1, "target_sizes")
    patch, side, small = config.vision_config.patch_size, _side(config), []
    strips = pixels.split([height * width * patch for height, width in sizes.tolist()], dim=-1)
    new = [(height * side, width * side) for _, height, width in grid]
    for strip, (height, width), (down, across) in zip(strips, sizes.tolist(), new):
        image = strip.reshape(1, -1, patch, height, width * patch).transpose(2, 3).flatten(2, 3)
        image = resize_images(image, down * patch, across * patch)
        small.append(image.unflatten(2, (down, patch)).transpose(2, 3).flatten(3))
    return (torch.cat(small, -1),), {**kwargs, "target_sizes": sizes.new_tensor(new)}


def _strip(groups: Tensor) -> tuple[Args, Kwargs]:
    """Squares ``(W, k, C)`` side by side, as an image that is one square high."""
    side = math.isqrt(groups.shape[1])
    strip = groups.unflatten(1, (side, side)).transpose(0, 1).reshape(1, -1, groups.shape[-1])
    return (strip, torch.tensor([[side, len(groups) * side]], device=groups.device)), {}


ALSO = ("minicpmv4_7", "minicpm_ocr")
FAMILY = Family(
    model_type="minicpmv4_6",
    modalities={"pixel_values": "image_token_id", "pixel_values_videos": "video_token_id"},
    tower=Tower(
        module="vision_tower",
        layout="padded",
        canvas=False,
        merger=Merger(
            module="vit_merger",
            block=lambda config: config.vision_config.insert_layer_id + 1,
            rows=_merged,
            attention="self_attn",
            arguments=_strip,
        ),
        joins="inside",
        output="merger",
        unit=lambda config: _side(config) ** 2,
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
        grid=_grid,
        resize=_resize,
        block_args={"attention_mask": "mask", "cu_seqlens": "seqlens"},
    ),
    decoder=qwen3_5.FAMILY.decoder,
    frames=NOWHERE,
)
