"""Tiny models of the families that cut images into tiles; used through `tiny`.

Here ``(height, width)`` is the size of a picture in patches, whatever becomes of it, and a video is ``(frames,)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tiny_shared import (
    BLOCKS,
    PATCH,
    TOKEN_ID,
    VIDEO_HERE,
    VIDEO_TOKEN,
    make_tokenizer,
    reload_parts,
    reload_processor,
)
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

ANYRES = ("llava_next", "llava_next_video", "llava_onevision")  # tiles side by side, with newlines
IDEFICS = ("idefics3", "smolvlm")  # the images of a row are one entry of pixels and of features
OVIS = ("ovis2",)  # whose features are words of a visual vocabulary
INDICATORS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
MORE = {  # special tokens than all families have
    **dict.fromkeys(IDEFICS, ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")),
    **dict.fromkeys(OVIS, ("<IMG_ATOM>", *INDICATORS)),
}
NAMES = {  # of tokens, by which a processor asks for them
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
}
JOINED = ("internvl", *IDEFICS, *OVIS)  # tiles one after another; patches are put together before the projector
SIDE = {**dict.fromkeys(ANYRES, 4), **dict.fromkeys(JOINED, 8)}  # patches of a tile
USUAL = {**dict.fromkeys(ANYRES, (6, 8)), **dict.fromkeys(JOINED, (8, 16))}
PINPOINTS = [[16, 32], [32, 16], [32, 32], [16, 48]]
ASPECT = "anyres_max_2"  # pictures of more than two tiles are pooled
FAMILIES = tuple(SIDE)
IMAGE_TEXT = {**dict.fromkeys(FAMILIES, "<image>"), "internvl": "<IMG_CONTEXT>"}
IMAGE_TOKEN = {family: TOKEN_ID[text] for family, text in IMAGE_TEXT.items()}
IMAGE_TOKEN |= dict.fromkeys(OVIS, len(TOKEN_ID))  # the first of its own
CLASSES = {
    "llava_next": LlavaNextForConditionalGeneration,
    "llava_next_video": LlavaNextVideoForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
    "internvl": InternVLForConditionalGeneration,
    "idefics3": Idefics3ForConditionalGeneration,
    "smolvlm": SmolVLMForConditionalGeneration,
    "ovis2": Ovis2ForConditionalGeneration,
}
ROWS: dict[str, list[list[Any]]] = {
    "llava_next": [[3, (6, 8), 5], [2, (4, 8), 4, (8, 4), 7], [6]],
    "llava_next_video": [[3, (4, 8), 5], [2, (8, 4), 4, (6, 8), 7], [6]],
    "llava_onevision": [[3, (6, 8), 5], [2, (4, 8), 4, (8, 4), 7], [1, (4, 12), 2], [6]],
    **{family: [[3, (8, 16), 5], [2, (8, 8), 4, (16, 8), 7], [6]] for family in JOINED},
}
VIDEO_ROWS: dict[str, list[list[Any]]] = {
    "llava_onevision": [[3, (2,), 5], [2, (6, 8), 4, (2,), 7]],
    "llava_next_video": [[3, (2,), 5], [2, (6, 8), 4, (2,), 7]],
}


def config(family: str, text: dict[str, Any]) -> Any:
    """The config around a language model's ``text``."""
    side, image = SIDE[family] * PATCH, IMAGE_TOKEN[family]
    vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, image_size=side, patch_size=PATCH)
    if family == "internvl":
        vision |= dict(num_hidden_layers=BLOCKS, layer_scale_init_value=0.5)
        return InternVLConfig(
            vision_config=vision, text_config=text | {"model_type": "qwen2"}, image_token_id=image, image_seq_length=16
        )
    if family in OVIS:
        vision |= dict(num_hidden_layers=BLOCKS, hidden_stride=2, vocab_size=48)
        ids = [image + 1 + i for i in range(len(INDICATORS))]
        return Ovis2Config(
            vision_config=vision, text_config=text | {"model_type": "qwen2"}, image_token_id=image,
            visual_indicator_token_ids=ids, vocab_size=text["vocab_size"], hidden_size=text["hidden_size"],
        )  # fmt: skip
    if family in IDEFICS:
        vision |= dict(num_hidden_layers=BLOCKS)
        kind: Any = Idefics3Config if family == "idefics3" else SmolVLMConfig
        return kind(vision_config=vision, text_config=text | {"model_type": "llama"}, image_token_id=image)
    if family in ("llava_next", "llava_next_video"):
        vision |= dict(model_type="clip_vision_model", num_hidden_layers=BLOCKS + 1)
        around: dict[str, Any] = dict(
            vision_config=vision,
            text_config=text | {"model_type": "llama"},
            image_grid_pinpoints=PINPOINTS,
            image_token_index=image,
        )
        if family == "llava_next_video":
            return LlavaNextVideoConfig(**around, video_token_index=VIDEO_TOKEN)
        return LlavaNextConfig(**around)
    vision |= dict(model_type="siglip_vision_model", num_hidden_layers=BLOCKS, vision_use_head=False)
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text | {"model_type": "qwen2"},
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ASPECT,
        image_token_index=image,
        video_token_index=VIDEO_TOKEN,
    )


def processor(family: str) -> Any:
    """The family's processor, without videos."""
    images, kind, options = _parts(family)
    tokenizer = make_tokenizer(NAMES.get(family), MORE.get(family, ()))
    if family == "llava_next":
        return reload_processor(family, kind(images, tokenizer, **options), backend="pil")
    return reload_parts(family, kind, images, tokenizer, **options)


def _parts(family: str) -> tuple[Any, Any, dict[str, Any]]:
    """Image processor, processor class and its options."""
    side = SIDE[family] * PATCH
    square = {"height": side, "width": side}
    if family == "internvl":
        images: Any = GotOcr2ImageProcessorPil(size=square, min_patches=1, max_patches=4, crop_to_patches=True)
        return images, InternVLProcessor, dict(image_seq_length=16)
    if family in OVIS:
        return (
            Ovis2ImageProcessorPil(size=square, crop_to_patches=True, max_patches=4),
            Ovis2Processor,
            dict(image_seq_length=16),
        )
    if family in IDEFICS:  # SmolVLM's own processor wants torchvision; what it does with images is the same
        kind: Any = Idefics3ImageProcessorPil if family == "idefics3" else SmolVLMImageProcessorPil
        return kind(do_resize=False, max_image_size={"longest_edge": side}), Idefics3Processor, dict(image_seq_len=16)
    if family in ("llava_next", "llava_next_video"):
        images = LlavaNextImageProcessorPil(
            size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=PINPOINTS
        )
        options = dict(patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1)
        if family == "llava_next_video":
            return images, LlavaNextVideoProcessor, options | {"video_token": "<|video_pad|>"}
        return images, LlavaNextProcessor, options
    images = LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=PINPOINTS)
    options = dict(
        num_image_tokens=SIDE[family] ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=ASPECT,
        video_token="<|video_pad|>",
    )
    return images, LlavaOnevisionProcessor, options


def video(family: str, size: tuple[int], generator: torch.Generator) -> tuple[str, Tensor]:
    """Text of a video, and its pixels ``(frames, 3, height, width)``."""
    (frames,), side = size, SIDE[family] * PATCH
    text = VIDEO_HERE * (frames * math.ceil(SIDE[family] / 2) ** 2 + (family == "llava_onevision"))
    return text, torch.randn(frames, 3, side, side, generator=generator)


def videos(family: str, pixels: list[Tensor], sizes: list[tuple[int]]) -> dict[str, Tensor]:
    """What a prompt with videos brings besides text."""
    return {"pixel_values_videos": torch.stack(pixels)}


def views(family: str, batch: dict[str, Any], unpadded: Any) -> list[list[tuple[int, int]]]:
    """``(height, width)`` of what the language model sees of each image, in order, before its newlines are put in.

    ``unpadded`` is the function with which the family's processor counts placeholders.
    """
    side = SIDE[family]
    if family in JOINED:
        if "pixel_values" not in batch:
            return []
        tiles = batch["pixel_values"].flatten(0, -4)
        return [[(side // 2, side // 2)]] * int(
            (tiles != 0).flatten(1).any(1).sum()
        )  # zeros: padding to the longest row
    single = [n == 1 for n in batch.get("batch_num_images", [1] * len(batch["image_sizes"])) for _ in range(int(n))]
    found = []
    for (height, width), tiled in zip(batch["image_sizes"].tolist(), single, strict=True):
        if not tiled:
            found.append([(side, side)])
            continue
        # Every picture here fits one of the pinpoints without being resized.
        down, across = math.ceil(height / PATCH / side), math.ceil(width / PATCH / side)
        patches, lines = unpadded(height, width, side, side, down, across)
        found.append([(side, side), (lines, patches // lines)])
    return found


def is_patch(family: str, batch: dict[str, Any], unpadded: Any) -> list[bool]:
    """For every image placeholder of a batch, in order: is it a patch, and no newline?"""
    flags: list[bool] = []
    for image in views(family, batch, unpadded):
        (height, width), *rest = image
        flags += [True] * (height * width)
        if family not in JOINED and not rest:
            flags.append(False)
        for height, width in rest:
            flags += ([True] * width + [False]) * height
    return flags
