"""Tiny models of plain LLaVA, whose images all have one size; used through `tiny`."""

from __future__ import annotations

from typing import Any

from tiny_shared import BLOCKS, PATCH, TOKEN_ID, make_tokenizer, reload_processor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIDE = 6  # patches: an image has 36 tokens
FAMILIES = ("llava", "llava_siglip")
CLASSES = dict.fromkeys(FAMILIES, LlavaForConditionalGeneration)
USUAL = TOKENS = dict.fromkeys(FAMILIES, (SIDE, SIDE))  # a patch is a token
IMAGE_TEXT = dict.fromkeys(FAMILIES, "<image>")
IMAGE_TOKEN = dict.fromkeys(FAMILIES, TOKEN_ID["<image>"])
ROWS: dict[str, list[list[Any]]] = {family: [[3, "image", 5], [2, "image", 4, "image", 7], [6]] for family in FAMILIES}


def config(family: str, text: dict[str, Any]) -> Any:
    """The config around a language model's ``text``."""
    vision: dict[str, Any] = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4)
    vision |= dict(image_size=SIDE * PATCH, patch_size=PATCH)
    around: dict[str, Any] = dict(text_config=text | {"model_type": "llama"}, image_token_id=IMAGE_TOKEN[family])
    if family == "llava":  # the last block's output is not used
        vision |= dict(model_type="clip_vision_model", num_hidden_layers=BLOCKS + 1)
        return LlavaConfig(vision_config=vision, **around)
    vision |= dict(model_type="siglip_vision_model", num_hidden_layers=BLOCKS, vision_use_head=False)
    around |= dict(vision_feature_layer=-1, vision_feature_select_strategy="full")
    return LlavaConfig(vision_config=vision, **around)


def processor(family: str) -> Any:
    """The family's processor."""
    side = {"height": SIDE * PATCH, "width": SIDE * PATCH}
    images: Any = SiglipImageProcessorPil(size=side)
    options = dict(patch_size=PATCH, vision_feature_select_strategy="full", num_additional_image_tokens=0)
    if family == "llava":
        images = CLIPImageProcessorPil(size={"shortest_edge": side["height"]}, crop_size=side)
        options |= dict(vision_feature_select_strategy="default", num_additional_image_tokens=1)
    return reload_processor(family, LlavaProcessor(images, make_tokenizer(), **options), backend="pil")
