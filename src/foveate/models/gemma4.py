"""Gemma 4: a tower that pads images of all sizes to as many patches and pools those of a token itself; layers that slide, some
of which attend to keys of earlier ones; and embeddings of each token for every layer.

Frames of a video are images to the tower."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from foveate.errors import InputError
from foveate.models.family import Args, Decoder, Family, Grid, Kwargs, Tower, argument, resize_images


def _across(config: Any) -> int:
    """Patches across a unit."""
    return int(config.vision_config.pooling_kernel_size)


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    given, side = argument(args, kwargs, 1, "pixel_position_ids").cpu(), _across(config)
    sides = (given.amax(1) + 1).tolist()
    at = torch.arange(given.shape[1])[None, :, None]
    width, height = given.new_tensor(sides)[:, None].split(1, dim=-1)
    places = torch.cat([at % width, at // width], dim=-1)
    whole = argument(args, kwargs, 0, "pixel_values").shape[:2] == given.shape[:2]
    if not whole or not torch.equal(given, torch.where(at < width * height, places, -1)):
        raise InputError(
            "the patches of an image reached the vision tower without their positions, or not line after line with padding "
            "last: give it both as the model's processor makes them"
        )
    return [(1, height // side, width // side) for width, height in sides]


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    images, side = argument(args, kwargs, 0, "pixel_values"), _across(config)
    size, patches, places = config.vision_config.patch_size, [], []
    for image, (_, height, width), (_, h, w) in zip(images, _grid(config, args, kwargs), grid):
        pixels = image[: height * width * side**2].view(height * side, width * side, size, size, -1)
        pixels = pixels.permute(4, 0, 2, 1, 3).reshape(1, -1, height * side * size, width * side * size)
        small = resize_images(pixels, h * side * size, w * side * size)[0]
        small = small.view(-1, h * side, size, w * side, size).permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)
        y, x = torch.meshgrid(torch.arange(h * side), torch.arange(w * side), indexing="ij")
        patches.append(small)
        places.append(torch.stack([x.flatten(), y.flatten()], dim=-1))
    padded = pad_sequence(places, batch_first=True, padding_value=-1).to(images.device)
    rest = {name: value for name, value in kwargs.items() if name not in ("pixel_values", "pixel_position_ids")}
    return (), {**rest, "pixel_values": pad_sequence(patches, batch_first=True), "pixel_position_ids": padded}


def _padded(config: Any, args: Args, kwargs: Kwargs) -> int:
    return int(argument(args, kwargs, 0, "pixel_values").shape[-2])


def _segments(config: Any, grid: Grid, block: int) -> list[int]:
    return [height * width * _across(config) ** 2 for _, height, width in grid]


def _around(tower: Any, args: Args, kwargs: Kwargs) -> int:
    """The embedding of patches, and their pooling: a product with a matrix of weights."""
    images, rows, pixels = argument(args, kwargs, 0, "pixel_values").shape
    pooled = rows // tower.config.pooling_kernel_size**2
    return int(2 * images * rows * tower.config.hidden_size * (pixels + (pooled if pooled < rows else 0)))


FAMILY = Family(
    model_type="gemma4",
    modalities={"pixel_values": "image_token_id", "pixel_values_videos": "video_token_id"},
    tower=Tower(
        module="vision_tower",
        blocks="encoder.layers",
        attention="self_attn",
        attention_norm="input_layernorm",
        query="q_proj",
        attention_end="o_proj",
        mid_norm="pre_feedforward_layernorm",
        ffn_end="post_feedforward_layernorm",
        layout="padded",
        joins="before",
        pooler="pooler",
        neck=("embed_vision.embedding_pre_projection_norm",),
        output="embed_vision.embedding_projection",
        unit=lambda config: _across(config) ** 2,
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
        grid=_grid,
        resize=_resize,
        padded=_padded,
        around=_around,
        segments=_segments,
        block_args={"attention_mask": "mask", "position_embeddings": "rotary", "position_ids": -2},
    ),
    decoder=Decoder(
        layer_args={
            "attention_mask": "mask",
            "position_embeddings": -2,
            "position_ids": -1,
            "per_layer_input": "own",
            "labels": -1,  # stock code hands down what it does not know
        },
        kinds="layer_types",
        shared="is_kv_shared_layer",
        complete=("router_logits",),
    ),
)
