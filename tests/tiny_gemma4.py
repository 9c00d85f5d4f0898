"""Tiny models of Gemma 4, whose processor pads images of all sizes to one number of patches; used through `tiny`.

``shared=2`` among the fields of the language model adds that many layers, which attend to keys of layers 4 and 5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from tiny_gemma import KINDS4, WINDOW
from tiny_packed import stamped
from tiny_shared import BLOCKS, GRID, PATCH, TOKEN_ID, VIDEO_TOKEN, make_tokenizer, reload_tokenizer
from torch import Tensor
from transformers import Gemma4Config, Gemma4ForConditionalGeneration
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    convert_image_to_patches,
    pad_along_first_dim,
)

SIDE = 2  # patches of a token, across
UNKNOWN = 1  # a token that no prompt has
PATCHES = 72  # what images are padded to, if none is larger
FAMILIES = ("gemma4",)
CLASSES = {"gemma4": Gemma4ForConditionalGeneration}
USUAL = {"gemma4": GRID}
PLACEHOLDER = "<image>"
IMAGE_TEXT = {"gemma4": "<img>"}
IMAGE_TOKEN = {"gemma4": TOKEN_ID[PLACEHOLDER]}
ROWS: dict[str, list[list[Any]]] = {"gemma4": [[3, (8, 8), 5], [2, (4, 12), 4, (8, 4), 7], [6]]}
VIDEO_ROWS: dict[str, list[list[Any]]] = {"gemma4": [[3, (2, 4, 8), 5], [2, (4, 8), 4, (2, 4, 4), 7]]}
STACKED = tuple(map(int, transformers.__version__.split(".")[:2])) < (
    5,
    23,
)  # older ones want videos in a batch of their own


def config(family: str, text: dict[str, Any]) -> Any:
    """The config around a language model's ``text``."""
    vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    vision |= dict(num_hidden_layers=BLOCKS, patch_size=PATCH, pooling_kernel_size=SIDE, position_embedding_size=64)
    shared = text.pop("shared", 0)
    layers = text["num_hidden_layers"] + shared
    kinds = [KINDS4[i % len(KINDS4)] for i in range(layers)]
    head = text["hidden_size"] // text["num_attention_heads"]
    ours = dict(layer_types=kinds, sliding_window=WINDOW, use_bidirectional_attention="vision", head_dim=head)
    ours |= dict(global_head_dim=2 * head, num_kv_shared_layers=shared, vocab_size_per_layer_input=text["vocab_size"])
    text = ours | dict(hidden_size_per_layer_input=8) | text | dict(num_hidden_layers=layers)
    ids = dict(image_token_id=IMAGE_TOKEN[family], video_token_id=VIDEO_TOKEN, audio_token_id=UNKNOWN)
    return Gemma4Config(text_config=text, vision_config=vision, audio_config=None, **ids)


def processor(family: str) -> Any:
    """The family's processor, without videos."""
    return Processor(reload_tokenizer(family, make_tokenizer()))


class Processor:
    """What the family's own processor does, which wants torchvision; images keep their size."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.image_processor = Gemma4ImageProcessorPil(patch_size=PATCH, pooling_kernel_size=SIDE, max_soft_tokens=70)

    def __call__(self, images: Any, text: list[str], **options: Any) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if images:
            made = dict(self.image_processor(images, do_resize=False, return_tensors="pt"))
            counts = iter(made.pop("num_soft_tokens_per_image").tolist())
            there = int((made["image_position_ids"][..., 0] >= 0).sum(1).max())
            made = {name: value[:, : max(there, PATCHES)] for name, value in made.items()}
        prompts = []
        for prompt in text:
            first, *rest = prompt.split("<img>")
            prompts.append(first + "".join(f"<img>{PLACEHOLDER * next(counts)}</img>{after}" for after in rest))
        return {**self.tokenizer(prompts, **options), **made}


def video(family: str, size: tuple[int, int, int], generator: torch.Generator) -> tuple[str, Tensor]:
    """Text of a video, and its pixels ``(frames, 3, height, width)``."""
    frames, height, width = size
    return stamped(size), torch.randn(frames, 3, height * PATCH, width * PATCH, generator=generator)


def videos(family: str, pixels: list[Tensor], sizes: list[tuple[int, int, int]]) -> dict[str, Tensor]:
    """What a prompt with videos brings besides text."""
    patches, places = [], []
    for frame in [frame for video in pixels for frame in video.numpy()]:
        height, width = (side // PATCH for side in frame.shape[1:])
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        at = np.stack([x, y], axis=-1).reshape(-1, 2)
        cut, at = pad_along_first_dim(convert_image_to_patches(frame, PATCH), at, PATCHES)
        patches.append(torch.from_numpy(cut))
        places.append(torch.from_numpy(at))
    made = {"pixel_values_videos": torch.stack(patches), "video_position_ids": torch.stack(places)}
    if STACKED:
        return {name: value.unflatten(0, (len(pixels), -1)) for name, value in made.items()}
    return made | {"num_frames_per_video": torch.tensor([len(video) for video in pixels])}
