"""Tiny models of types of which the language model alone is known, and two images of one size for each.

`foveate.lab.inspection` makes most of them by rules. What it cannot make is in a file that is named like the type:
``config()``; ``images(config)``, the arguments that the images are; ``row(batch, i)``, where one of them is not half of every
argument; and ``video(batch)``, what a video of one frame is given besides.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from foveate.lab.inspection import tiny as shrinking
from foveate.lab.inspection import trial

IMAGE = 100  # id of the placeholder
SIDE = 32  # pixels along an image
#: sizes of most language models
TEXT: dict[str, Any] = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)


def _own(name: str) -> Any:
    """The file of a type, or None."""
    path = f"{__name__}.{name.replace('-', '_').replace('.', '_')}"
    return importlib.import_module(path) if find_spec(path) else None


def config_of(name: str) -> Any:
    """The config of a tiny model."""
    own = _own(name)
    return own.config() if hasattr(own, "config") else shrinking.config_of(name)


def token_of(config: Any) -> int:
    """The id of the placeholders of an image."""
    return int(config.image_token_id)


def trial_of(name: str, config: Any, base: Any) -> trial.Trial:
    """Two images."""
    own = _own(name)
    return trial.Trial(own.images(config)) if hasattr(own, "images") else trial.find(config, base)


def row_of(name: str, batch: dict[str, Any], i: int) -> dict[str, Any]:
    """Row ``i`` of a batch of two, each with one image."""
    halves = {key: value.chunk(2)[i] if isinstance(value, Tensor) else value for key, value in batch.items()}
    own = _own(name)
    return own.row(halves, i) if hasattr(own, "row") else halves


def video_of(name: str, config: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """A row of one image as a video of one frame."""
    named = {key.replace("image_", "video_"): value for key, value in batch.items() if key != "pixel_values"}
    ids, own = batch["input_ids"].clone(), _own(name)
    ids[ids == token_of(config)] = int(config.video_token_id)
    types = {key: 2 * value for key, value in batch.items() if key == "mm_token_type_ids"}
    named |= types | {"pixel_values_videos": batch["pixel_values"], "input_ids": ids}
    return named | (own.video(batch) if hasattr(own, "video") else {})
