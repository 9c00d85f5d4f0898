"""Tiny models whose tower has all images, of any size, one after another in a single row; used through `tiny`.

In the prompt every line of an image ends with a token that is text.
"""

from __future__ import annotations

from typing import Any

from tiny_shared import BLOCKS, GRID, PATCH, TOKEN_ID, make_tokenizer, reload_tokenizer
from transformers import LlavaConfig, LlavaForConditionalGeneration, Mistral3Config, Mistral3ForConditionalGeneration
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

UNIT = {"llava_pixtral": 1, "mistral3": 4}  # patches of a token
FAMILIES = tuple(UNIT)
CLASSES = {"llava_pixtral": LlavaForConditionalGeneration, "mistral3": Mistral3ForConditionalGeneration}
USUAL = dict.fromkeys(FAMILIES, GRID)
IMAGE_TEXT = dict.fromkeys(FAMILIES, "<image>")
IMAGE_TOKEN = dict.fromkeys(FAMILIES, TOKEN_ID["<image>"])
ROWS: dict[str, list[list[Any]]] = {
    "llava_pixtral": [[3, (5, 6), 5], [2, (3, 8), 4, (6, 2), 7], [6]],
    "mistral3": [[3, (8, 8), 5], [2, (4, 12), 4, (8, 4), 7], [6]],
}


def config(family: str, text: dict[str, Any]) -> Any:
    """The config around a language model's ``text``; with ``model_type="ministral3"`` it scales queries by position."""
    vision = dict(model_type="pixtral", hidden_size=32, intermediate_size=64, num_hidden_layers=BLOCKS)
    vision |= dict(num_attention_heads=4, image_size=16 * PATCH, patch_size=PATCH)
    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    around: dict[str, Any] = dict(vision_config=vision, image_token_index=IMAGE_TOKEN[family], vision_feature_layer=-1)
    text = dict(model_type="mistral", sliding_window=None) | text
    if text["model_type"] == "ministral3":
        scaled = dict(rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=8)
        scaled |= dict(max_position_embeddings=2048, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)
        text["rope_parameters"] = scaled | dict(llama_4_scaling_beta=0.5)
    if family == "llava_pixtral":
        return LlavaConfig(text_config=text, vision_feature_select_strategy="full", **around)
    return Mistral3Config(text_config=text, spatial_merge_size=2, **around)


def processor(family: str) -> Any:
    """The family's processor."""
    return Processor(family, reload_tokenizer(family, make_tokenizer()))


class Processor:
    """What the families' own processor does, which wants torchvision: a line of placeholders for every line of tokens."""

    def __init__(self, family: str, tokenizer: Any) -> None:
        self.tokenizer, self.side = tokenizer, PATCH * int(UNIT[family] ** 0.5)
        self.images = PixtralImageProcessorPil(patch_size=self.side, size={"longest_edge": 16 * PATCH})

    def __call__(self, images: Any, text: list[str], **options: Any) -> dict[str, Any]:
        made = dict(self.images(images, return_tensors="pt")) if images else {}
        sizes = iter(made["image_sizes"].tolist() if images else [])
        prompts = []
        for prompt in text:
            first, *rest = prompt.split("<image>")
            for after in rest:
                height, width = (pixels // self.side for pixels in next(sizes))
                lines = ["<image>" * width] * height
                first += "<img>".join(lines) + "</img>" + after
            prompts.append(first)
        return {**self.tokenizer(prompts, **options), **made}
