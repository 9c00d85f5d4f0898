"""A tiny MiniCPM-V, whose tower merges patches on the way: 16 patches make a token, in two steps; used through `tiny`.

A picture that is larger than a slice is seen whole, and in slices. A video is ``(frames,)``.
"""

from __future__ import annotations

from typing import Any

import torch
from tiny_packed import hybrid
from tiny_shared import BLOCKS, PATCH, TOKEN_ID, VIDEO_HERE, VIDEO_TOKEN, make_tokenizer, reload_tokenizer
from torch import Tensor
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration
from transformers.models.minicpmv4_6 import modeling_minicpmv4_6 as stock
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

SLICE = 14  # patches along a side; larger pictures are sliced
INSERT = 2  # the merger comes after this block
FRAME = (8, 8)  # patches
FAMILIES = ("minicpmv4_6",)
CLASSES = {"minicpmv4_6": MiniCPMV4_6ForConditionalGeneration}
USUAL = {"minicpmv4_6": (12, 16)}
IMAGE_TEXT = {"minicpmv4_6": "<image>"}
IMAGE_TOKEN = {"minicpmv4_6": TOKEN_ID["<image>"]}
#: older versions merge as if all images of a call had the size of the first, and fail if they do not
RAGGED = not hasattr(stock, "get_vision_merged_shape")
SIZES = [(16, 16), (8, 24), (16, 8)] if RAGGED else [(8, 16)] * 3
ROWS: dict[str, list[list[Any]]] = {"minicpmv4_6": [[3, SIZES[0], 5], [2, SIZES[1], 4, SIZES[2], 7], [6]]}
VIDEO_ROWS: dict[str, list[list[Any]]] = {"minicpmv4_6": [[3, (2,), 5], [2, (8, 16), 4, (3,), 7]]}


def config(family: str, text: dict[str, Any]) -> Any:
    """The config around a language model's ``text``."""
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=BLOCKS, num_attention_heads=4)
    vision |= dict(image_size=16 * PATCH, patch_size=PATCH)
    ids = dict(image_token_id=IMAGE_TOKEN[family], video_token_id=VIDEO_TOKEN)
    text = {"model_type": "qwen3_5_text"} | hybrid(text)
    return MiniCPMV4_6Config(vision_config=vision, text_config=text, insert_layer_id=INSERT, **ids)


def processor(family: str) -> Any:
    """The family's processor, without videos."""
    return Processor(reload_tokenizer(family, make_tokenizer()))


class Processor:
    """What the family's own processor does, which wants torchvision: a run of placeholders for every image and slice."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.images = MiniCPMV4_6ImageProcessorPil(
            patch_size=PATCH, scale_resolution=SLICE * PATCH, max_slice_nums=4, do_resize=False
        )

    def __call__(self, images: Any, text: list[str], **options: Any) -> dict[str, Any]:
        made = dict(self.images(images, return_tensors="pt")) if images else {}
        counts = iter(made.pop("num_patches_per_image", []))
        made.pop("grids", None)
        sizes = iter(made["target_sizes"].tolist() if images else [])
        prompts = []
        for prompt in text:
            first, *rest = prompt.split("<image>")
            for after in rest:
                for i in range(next(counts)):
                    height, width = next(sizes)
                    start, end = ("<|vision_start|>", "<|vision_end|>") if i else ("<img>", "</img>")
                    first += start + "<image>" * (height * width // 16) + end
                first += after
            prompts.append(first)
        return {**self.tokenizer(prompts, **options), **made}


def video(family: str, size: tuple[int], generator: torch.Generator) -> tuple[str, Tensor]:
    """Text of a video, and its pixels ``(1, 3, patch, pixels)``, patch after patch."""
    (frames,), patches = size, FRAME[0] * FRAME[1]
    text = f"<img>{VIDEO_HERE * (patches // 16)}</img>" * frames
    return text, torch.randn(1, 3, PATCH, frames * patches * PATCH, generator=generator)


def videos(family: str, pixels: list[Tensor], sizes: list[tuple[int]]) -> dict[str, Tensor]:
    """What a prompt with videos brings besides text."""
    frames = sum(count for (count,) in sizes)
    return {"pixel_values_videos": torch.cat(pixels, -1), "target_sizes_videos": torch.tensor([FRAME] * frames)}


def own_processor(tokenizer: Any) -> Any:
    """The family's own processor, with torchvision."""
    from transformers import MiniCPMV4_6Processor, MiniCPMV4_6VideoProcessor

    names = {"image_token": "<image>", "image_start_token": "<img>", "image_end_token": "</img>"}
    names |= {"video_token": "<|video_pad|>", "slice_start_token": "<|vision_start|>"}
    names |= {"slice_end_token": "<|vision_end|>", "image_id_start_token": "<unk>", "image_id_end_token": "<unk>"}
    for name, token in names.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    how: dict[str, Any] = dict(patch_size=PATCH, scale_resolution=SLICE * PATCH, use_image_id=False)
    images = MiniCPMV4_6ImageProcessorPil(max_slice_nums=4, do_resize=False, **how)
    return MiniCPMV4_6Processor(images, MiniCPMV4_6VideoProcessor(max_slice_nums=2, **how), tokenizer)
