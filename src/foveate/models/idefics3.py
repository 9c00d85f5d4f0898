"""Idefics3: tiles one after another, with text in between, each a span; pixel shuffle puts the patches of a token together
inside the connector, in front of its linear layer. It takes every tile for a square."""

from __future__ import annotations

from typing import Any

from torch.nn.functional import interpolate

from foveate.errors import InputError
from foveate.models.family import Args, Decoder, Family, Grid, Kwargs, Tower, argument, resize_images


def _cell(config: Any) -> int:
    """Pixels along a side of a unit."""
    return int(config.vision_config.patch_size * config.scale_factor)


def _grid(config: Any, args: Args, kwargs: Kwargs) -> Grid:
    images, _, height, width = argument(args, kwargs, 0, "pixel_values").shape
    if height != width:
        raise InputError(
            f"images of {height} x {width} pixels reached the vision tower, whose connector puts patches together as if "
            "images were square: give it the square tiles that the model's processor makes"
        )
    return [(1, height // _cell(config), width // _cell(config))] * images


def _resize(config: Any, args: Args, kwargs: Kwargs, grid: Grid) -> tuple[Args, Kwargs]:
    _, height, width = grid[0]  # the tower takes one size for all images
    down, across = height * config.scale_factor, width * config.scale_factor  # patches
    patch, given = config.vision_config.patch_size, kwargs.get("patch_attention_mask")
    new = {
        **kwargs,
        "pixel_values": resize_images(argument(args, kwargs, 0, "pixel_values"), down * patch, across * patch),
    }
    if given is not None:  # True where a patch is no padding
        new["patch_attention_mask"] = interpolate(given[:, None].float(), (down, across))[:, 0].bool()
    return (), new


FAMILY = Family(
    model_type="idefics3",
    tower=Tower(
        module="vision_model",
        layout="padded",
        joins="before",
        output="connector.modality_projection",
        unit=lambda config: config.scale_factor**2,
        last_block=lambda config: config.vision_config.num_hidden_layers - 1,
        grid=_grid,
        resize=_resize,
        block_args={"attention_mask": "mask"},
    ),
    decoder=Decoder(module="text_model"),
)
