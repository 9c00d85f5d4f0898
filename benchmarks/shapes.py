"""What the speed benchmarks run on: a Qwen2.5-VL with random weights, a prompt for it, and what machine this is."""

from __future__ import annotations

import platform
from typing import Any

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import foveate

IMAGE, START, END = 10, 12, 13
TEXT = 32  # words of a prompt

#: A tower that hardly counts, beside a language model that does.
SMALL_TOWER: dict[str, Any] = dict(
    depth=2, hidden_size=160, intermediate_size=320, num_heads=2, fullatt_block_indexes=[1]
)


def tower(blocks: int) -> dict[str, Any]:
    """A tower of so many blocks, a quarter of them with full attention."""
    full = list(range(3, blocks, 4))
    return dict(depth=blocks, hidden_size=320, intermediate_size=864, num_heads=4, fullatt_block_indexes=full)


def build(width: int, layers: int, vision: dict[str, Any]) -> Any:
    """A language model of ``width`` channels and ``layers`` layers behind a tower."""
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=1000,
            hidden_size=width,
            intermediate_size=width * 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 256,
            max_position_embeddings=32_768,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12]),
        ),
        vision_config=dict(patch_size=14, window_size=112, out_hidden_size=width, **vision),
        image_token_id=IMAGE,
        video_token_id=11,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def prompt(visual: int, images: int = 1) -> dict[str, torch.Tensor]:
    """Images of about ``visual`` tokens each, nearly square, between words."""
    height = int(visual**0.5)
    width = visual // height
    words = TEXT // 2
    ids = torch.tensor([[20] * words + [START, *[IMAGE] * (height * width), END] * images + [21] * words])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(images * 4 * height * width, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 2 * height, 2 * width]] * images),
    }


def machine(threads: int) -> dict[str, Any]:
    """What a figure depends on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "foveate": foveate.__version__,
    }
