"""Tiny models of PaliGemma and Gemma 3, whose prompts see parts of themselves in both directions; used through `tiny`.

A batch says by ``token_type_ids`` what it sees: in PaliGemma 0 is the prefix, in Gemma 3 1 is an image.
"""

from __future__ import annotations

from typing import Any

from tiny_shared import BLOCKS, PATCH, TOKEN_ID, make_tokenizer, reload_processor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIDE = {"paligemma": 6, "gemma3": 8}  # patches of an image
USUAL = {family: (side, side) for family, side in SIDE.items()}
TOKENS = {"paligemma": (6, 6), "gemma3": (4, 4)}  # down and across
WINDOW = 20  # shorter than every prompt with an image
KINDS = ["sliding_attention", "full_attention", "sliding_attention"] * 2
KINDS4 = [
    "sliding_attention",
    "full_attention",
    *["sliding_attention"] * 3,
    "full_attention",
]  # of Gemma 4: a full one last
FAMILIES = tuple(SIDE)
CLASSES: dict[str, Any] = {
    "paligemma": PaliGemmaForConditionalGeneration,
    "gemma3": Gemma3ForConditionalGeneration,
}
IMAGE_TEXT = {"paligemma": "<image>", "gemma3": "<img>"}  # in the text of a prompt
IMAGE_TOKEN = {"paligemma": TOKEN_ID["<image>"], "gemma3": TOKEN_ID["<IMG_CONTEXT>"]}
ROWS: dict[str, list[list[Any]]] = {
    "paligemma": [[3, "image", 5], [2, "image", 4, "image", 7], [6]],
    "gemma3": [[3, (8, 16), 5], [2, "image", 4, "image", 7], [6]],  # the first one is seen whole, and in two crops
}
NAMES = {  # of tokens, by which a processor asks for them
    "gemma3": {"boi_token": "<img>", "eoi_token": "</img>", "image_token": "<IMG_CONTEXT>"},
}
BOS = "<|vision_start|>"


def config(family: str, text: dict[str, Any]) -> Any:
    """The config around a language model's ``text``."""
    image = IMAGE_TOKEN[family]
    vision = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=BLOCKS)
    vision |= dict(model_type="siglip_vision_model", image_size=SIDE[family] * PATCH, patch_size=PATCH)
    vision |= dict(vision_use_head=False)
    text = {"head_dim": text["hidden_size"] // text["num_attention_heads"]} | text
    if family == "paligemma":
        width = text["hidden_size"]
        text = {"model_type": "gemma"} | text
        around = dict(vocab_size=text["vocab_size"], hidden_size=width, projection_dim=width, image_token_index=image)
        return PaliGemmaConfig(vision_config=vision, text_config=text, **around)
    kinds = [KINDS[i % len(KINDS)] for i in range(text["num_hidden_layers"])]
    text = dict(sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=16) | text
    return Gemma3Config(vision_config=vision, text_config=text, image_token_index=image, mm_tokens_per_image=16)


def processor(family: str) -> Any:
    """The family's processor."""
    images, kind, options = _parts(family)
    tokenizer = make_tokenizer(NAMES.get(family))
    tokenizer.bos_token = BOS
    return reload_processor(family, kind(images, tokenizer, **options), backend="pil")


def _parts(family: str) -> tuple[Any, Any, dict[str, Any]]:
    """Image processor, processor class and its options."""
    side = {"height": SIDE[family] * PATCH, "width": SIDE[family] * PATCH}
    if family == "paligemma":
        images: Any = SiglipImageProcessorPil(size=side)
        images.image_seq_length = SIDE[family] ** 2
        return images, PaliGemmaProcessor, {}
    return Gemma3ImageProcessorPil(size=side), Gemma3Processor, dict(image_seq_length=16)


def process(family: str, processor: Any, images: list[list[Any]], texts: list[str], padding_side: str) -> Any:
    """Inputs of a batch; ``images`` of each row."""
    how = dict(padding=True, padding_side=padding_side, return_tensors="pt")
    if family == "gemma3":
        crops = dict(do_pan_and_scan=True, pan_and_scan_min_crop_size=SIDE[family] * PATCH // 2)
        found = processor(images=images if any(images) else None, text=texts, **how, **crops)
    elif all(images):
        found = processor(images=images, text=texts, **how)
        del found["labels"]
    else:  # its processor takes no rows without an image
        expanded = []
        for text in texts:
            *before, after = text.split("<image>")
            whole = "".join(part + "<image>" * SIDE[family] ** 2 for part in before)
            expanded.append(f"{whole}{BOS}{after}\n" if before else text)
        found = processor.tokenizer(expanded, return_token_type_ids=True, **how)
        flat = [image for row in images for image in row]
        if flat:
            found["pixel_values"] = processor.image_processor(flat, return_tensors="pt")["pixel_values"]
    return found


def types_of_generated(family: str) -> int:
    """Token type of what comes after a prompt."""
    return int(family == "paligemma")
