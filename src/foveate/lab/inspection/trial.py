"""An image prompt that a model takes, found by trying the ways in which stock code is given pixels."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedModelError

IMAGES = 2  # of a trial, of one size each


@dataclass(frozen=True)
class Trial:
    """Inputs of a stock call with images.

    Attributes:
        pixels: arguments of the function that encodes images, by name.
        sides: patches down and across of each image (of each tile, where they are cut).
    """

    pixels: dict[str, Any]
    sides: list[tuple[int, int]] = field(default_factory=list)


def base_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Path of the module that joins vision and text, and that module: the innermost one that encodes images."""
    inner = getattr(model, "model", None)
    if inner is not None and hasattr(inner, "get_image_features"):
        return "model", inner
    if hasattr(model, "get_image_features"):
        return "", model
    raise UnsupportedModelError(
        f"{type(model).__name__} has no function get_image_features: where its image meets its text has to be read in its code"
    )


def find(config: Any, base: Any) -> Trial:
    """The first way to give images that stock code takes.

    Raises:
        UnsupportedModelError: it takes none of them.
    """
    said = []
    for trial in _ways(config, set(inspect.signature(base.get_image_features).parameters)):
        try:
            with torch.no_grad():
                features(base, trial)
            return trial
        except Exception as error:  # stock code says in many ways that shapes do not fit
            said.append(f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}")
    raise UnsupportedModelError(
        f"get_image_features of {type(base).__name__} takes none of the inputs that were tried ({'; '.join(said[-2:])}): its "
        "image processor says what it wants"
    )


def features(base: Any, trial: Trial) -> Tensor:
    """``(features, C)`` that stock code makes of the images of a trial."""
    return rows_of(base.get_image_features(**trial.pixels))


def rows_of(made: Any) -> Tensor:
    """The features in what stock code returns of images."""
    found = getattr(made, "pooler_output", made)
    if found is None:
        found = made.last_hidden_state
    parts = [found] if isinstance(found, Tensor) else list(found)
    return torch.cat([part.flatten(0, -2) for part in parts])


def _ways(config: Any, names: set[str]) -> Iterator[Trial]:
    """Trials, the likely ones first."""
    vision = config.vision_config
    patch = getattr(vision, "patch_size", 4)
    patch = patch[0] if isinstance(patch, (list, tuple)) else patch
    depth = getattr(vision, "temporal_patch_size", 1)
    depth = depth[0] if isinstance(depth, (list, tuple)) else depth
    side = getattr(vision, "image_size", 8 * patch)
    side = (side[0] if isinstance(side, (list, tuple)) else side) // patch
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    for height, width in ((4, 8), (8, 8), (side, side)):
        sides, rows = [(height, width)] * IMAGES, IMAGES * height * width
        grid = torch.tensor([[1, height, width]] * IMAGES)
        if "image_grid_thw" in names:
            more = {"image_merge_sizes": torch.tensor([2] * IMAGES)} if "image_merge_sizes" in names else {}
            for shape in ((rows, 3 * depth * patch**2), (rows, 3 * patch**2), (rows, 3, patch, patch)):
                yield Trial({"pixel_values": noise(*shape), "image_grid_thw": grid} | more, sides)
        elif "target_sizes" in names:
            yield Trial({"pixel_values": noise(1, 3, patch, rows * patch), "target_sizes": grid[:, 1:]}, sides)
        elif "image_position_ids" in names:
            pooled = getattr(vision, "pooling_kernel_size", 1)
            height, width = 2 * pooled, 3 * pooled
            sides = [(height, width)] * IMAGES
            places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1).expand(IMAGES, -1, -1)
            given = noise(IMAGES, height * width, 3 * patch**2)
            yield Trial({"pixel_values": given, "image_position_ids": places}, sides)
        elif "image_sizes" in names and hasattr(config, "image_grid_pinpoints"):
            pixels = side * patch
            cut = noise(IMAGES, 3, 3, pixels, pixels)
            yield Trial(
                {"pixel_values": cut, "image_sizes": torch.tensor([[pixels, 2 * pixels]] * IMAGES)}, [(side, side)] * 6
            )
        else:
            more = (
                {"image_sizes": torch.tensor([[height * patch, width * patch]] * IMAGES)}
                if "image_sizes" in names
                else {}
            )
            image = noise(IMAGES, 3, height * patch, width * patch)
            for options in ({}, more) if more else ({},):
                yield Trial({"pixel_values": image} | _chosen(config, names) | options, sides)
            yield Trial({"pixel_values": image[:, None]}, sides)


def _chosen(config: Any, names: set[str]) -> dict[str, Any]:
    """Options that a function takes from the config in the forward that calls it."""
    wanted = ("vision_feature_layer", "vision_feature_select_strategy")
    return {name: getattr(config, name) for name in wanted if name in names and hasattr(config, name)}


def prompt(config: Any, model: nn.Module, trial: Trial, count: int) -> dict[str, Any]:
    """Inputs of the whole model: one row with all images and some text around them."""
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if token is None:
        raise UnsupportedModelError(f"the config of a {config.model_type!r} model names no image_token_id")
    images = ([*[int(token)] * (count // IMAGES), 3, 4] for _ in range(IMAGES))
    ids = torch.tensor([[1, 2, *(word for image in images for word in image), 5]])
    names = {
        name
        for module in (model, getattr(model, "model", model))
        for name in inspect.signature(module.forward).parameters
    }
    made: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in names:
            made[name] = (ids == token).long()
    return made | {name: value for name, value in trial.pixels.items() if name in names}
