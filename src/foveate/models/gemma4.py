"""Gemma 4: a tower that pads images of all sizes to as many patches and pools those of a token itself; layers that slide, some
of which attend to keys of earlier ones; and embeddings of each token for every layer.

Frames of a video are images to the tower."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from foveate.errors import InputError
from foveate.models.family import NOWHERE, Args, Decoder, Family, Grid, Kwargs, Tower, argument, resize_images


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
    if any(width % side or height % side for width, height in sides):
        raise InputError(
            f"images of {[(height, width) for width, height in sides]} patches do not divide into squares of {side} x {side}, "
            "of which this model makes one token each: give it the sizes that its processor makes"
        )
    return [(1, height // side, width // side) for width, height in sides]


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    images, side = argument(args, kwargs, 0, "pixel_values"), _across(config)
    size, patches, places = config.vision_config.patch_size, [], []
    for image, (_, height, width), (_, h, w) in zip(images, _grid(config, args, kwargs), grid):
        height, width, h, w = height * side, width * side, h * side, w * side
        pixels = image[: height * width].view(height, width, size, size, -1).permute(4, 0, 2, 1, 3)
        small = resize_images(pixels.reshape(1, -1, height * size, width * size), h * size, w * size)[0]
        patches.append(small.view(-1, h, size, w, size).permute(1, 3, 2, 4, 0).reshape(h * w, -1))
        places.append(torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(1))  # x, y
    padded = pad_sequence(places, batch_first=True, padding_value=-1).to(images.device)
    rest = {name: value for name, value in kwargs.items() if name not in ("pixel_values", "pixel_position_ids")}
    return (), {**rest, "pixel_values": pad_sequence(patches, batch_first=True), "pixel_position_ids": padded}


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
        padded=lambda config, args, kwargs: int(argument(args, kwargs, 0, "pixel_values").shape[-2]),
        around=_around,
        segments=lambda config, grid, block: [height * width * _across(config) ** 2 for _, height, width in grid],
        block_args={"attention_mask": "mask", "position_embeddings": "rotary", "position_ids": -2},
    ),
    decoder=Decoder(
        layer_args={
            **Decoder().layer_args,
            "per_layer_input": "own",
            "labels": -1,  # stock code hands down what it does not know
        },
        kinds="layer_types",
        shared="is_kv_shared_layer",
        experts="experts",
        complete=("router_logits",),
    ),
    frames=NOWHERE,
)
