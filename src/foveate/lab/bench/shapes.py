"""Models by shape: sizes of well-known models, from their public configs, and of small ones that run on a CPU.

Weights are random, which is fine for speed and memory and never for accuracy. A model is looked at without allocating
anything first (`skeleton`), so that what does not fit is refused before it is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import InternVLConfig, LlavaConfig, PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from foveate.errors import first_line
from foveate.lab.checks import check_shape
from foveate.lab.terminal import CommandError

#: Token ids of the small shapes.
IMAGE, VIDEO, START, END = 10, 11, 12, 13
#: Of the small shapes: their head should not outweigh their layers.
WORDS: dict[str, Any] = dict(vocab_size=1000, bos_token_id=None, eos_token_id=None, pad_token_id=None)


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        config: makes its config.
        about: what it is the shape of.
    """

    config: Callable[[], PreTrainedConfig]
    about: str


def _sizes(**sizes: Any) -> dict[str, Any]:
    return sizes


def _rope(theta: float, *sections: int, **how: Any) -> dict[str, Any]:
    how = how | {"mrope_section": list(sections)} if sections else how
    return dict(rope_type="default", rope_theta=theta, **how)


def _qwen2_5(text: dict[str, Any], vision: dict[str, Any], **ids: Any) -> Qwen2_5_VLConfig:
    patches = _sizes(patch_size=14, temporal_patch_size=2, spatial_merge_size=2, window_size=112)
    vision = _sizes(out_hidden_size=text["hidden_size"]) | patches | vision
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)


def _qwen2_5_7b() -> Qwen2_5_VLConfig:
    text = _sizes(hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28)
    text |= _sizes(num_key_value_heads=4, vocab_size=152_064, max_position_embeddings=128_000)
    text |= _sizes(rope_parameters=_rope(1e6, 16, 24, 24))
    vision = _sizes(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16)
    vision |= _sizes(fullatt_block_indexes=[7, 15, 23, 31])
    return _qwen2_5(text, vision)


def qwen2_5_small(
    width: int = 512, layers: int = 8, *, tower: int = 128, blocks: int = 8, head: int = 64
) -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL with a language model and a tower of these widths and depths, every fourth block with full attention.

    With the defaults, tower and language model share the work about as they do in the one of 7B.
    """
    text = _sizes(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers)
    text |= WORDS | _sizes(num_attention_heads=width // 64, num_key_value_heads=max(1, width // 256))
    text |= _sizes(max_position_embeddings=65_536, rope_parameters=_rope(1e6, 8, 12, 12))
    full = list(range(3, blocks, 4)) or [blocks - 1]
    vision = _sizes(depth=blocks, hidden_size=tower, intermediate_size=round(2.7 * tower), num_heads=tower // head)
    vision |= _sizes(fullatt_block_indexes=full)
    ids = _sizes(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
    return _qwen2_5(text, vision, **ids)


def _qwen3(text: dict[str, Any], vision: dict[str, Any], **ids: Any) -> Qwen3VLConfig:
    patches = _sizes(patch_size=16, temporal_patch_size=2, spatial_merge_size=2, num_position_embeddings=2304)
    vision = _sizes(out_hidden_size=text["hidden_size"]) | patches | vision
    return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)


def _qwen3_8b() -> Qwen3VLConfig:
    text = _sizes(hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32)
    text |= _sizes(num_key_value_heads=8, head_dim=128, vocab_size=151_936, max_position_embeddings=262_144)
    text |= _sizes(rope_parameters=_rope(5e6, 24, 20, 20, mrope_interleaved=True))
    vision = _sizes(depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16)
    vision |= _sizes(deepstack_visual_indexes=[8, 16, 24])
    return _qwen3(text, vision)


def _qwen3_small() -> Qwen3VLConfig:
    text = _sizes(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8)
    text |= WORDS | _sizes(num_key_value_heads=2, head_dim=64, max_position_embeddings=65_536)
    text |= _sizes(rope_parameters=_rope(5e6, 12, 10, 10, mrope_interleaved=True))
    vision = _sizes(depth=8, hidden_size=144, intermediate_size=538, num_heads=2, deepstack_visual_indexes=[2, 4, 6])
    ids = _sizes(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
    return _qwen3(text, vision, **ids)


def _llava(text: dict[str, Any], vision: dict[str, Any], image_token: int) -> LlavaConfig:
    vision = _sizes(model_type="clip_vision_model", image_size=336, patch_size=14) | vision
    text = _sizes(model_type="llama", rope_parameters=_rope(1e4)) | text
    chosen = _sizes(vision_feature_layer=-2, vision_feature_select_strategy="default", image_token_id=image_token)
    return LlavaConfig(text_config=text, vision_config=vision, **chosen)


def _llava_7b() -> LlavaConfig:
    text = _sizes(hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32)
    text |= _sizes(num_key_value_heads=32, vocab_size=32_064, max_position_embeddings=4096)
    vision = _sizes(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    return _llava(text, vision | _sizes(projection_dim=768), 32_000)


def _llava_small() -> LlavaConfig:
    text = _sizes(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8)
    text |= WORDS | _sizes(num_key_value_heads=8, max_position_embeddings=65_536)
    vision = _sizes(hidden_size=128, intermediate_size=512, num_hidden_layers=8, num_attention_heads=2)
    return _llava(text, vision, IMAGE)


def _internvl(text: dict[str, Any], vision: dict[str, Any], image_token: int) -> InternVLConfig:
    fixed = _sizes(image_size=[448, 448], patch_size=[14, 14], attention_bias=True)
    text = _sizes(model_type="qwen2", rope_parameters=_rope(1e6), tie_word_embeddings=False) | text
    whole = _sizes(image_token_id=image_token, downsample_ratio=0.5, tie_word_embeddings=False)
    return InternVLConfig(text_config=text, vision_config=fixed | vision, **whole)


def _internvl3_8b() -> InternVLConfig:
    text = _sizes(hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28)
    text |= _sizes(num_key_value_heads=4, vocab_size=151_674, max_position_embeddings=32_768)
    vision = _sizes(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    return _internvl(text, vision, 151_667)


def _internvl3_small() -> InternVLConfig:
    text = _sizes(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8)
    text |= WORDS | _sizes(num_key_value_heads=2, max_position_embeddings=65_536)
    vision = _sizes(hidden_size=128, intermediate_size=512, num_hidden_layers=8, num_attention_heads=2)
    return _internvl(text, vision, IMAGE)


SHAPES = {
    "qwen2.5-vl-7b": Shape(_qwen2_5_7b, "Qwen/Qwen2.5-VL-7B-Instruct"),
    "qwen3-vl-8b": Shape(_qwen3_8b, "Qwen/Qwen3-VL-8B-Instruct"),
    "llava-1.5-7b": Shape(_llava_7b, "llava-hf/llava-1.5-7b-hf"),
    "internvl3-8b": Shape(_internvl3_8b, "OpenGVLab/InternVL3-8B-hf"),
    "small-qwen2.5-vl": Shape(qwen2_5_small, "a Qwen2.5-VL of 8 layers and 8 blocks, for a CPU"),
    "small-qwen3-vl": Shape(_qwen3_small, "a Qwen3-VL of 8 layers and 8 blocks, for a CPU"),
    "small-llava": Shape(_llava_small, "a LLaVA-1.5 of 8 layers and 8 blocks, for a CPU"),
    "small-internvl3": Shape(_internvl3_small, "an InternVL3 of 8 layers and 8 blocks, for a CPU"),
}


def config_of(name: str) -> Any:
    """The config of a shape; an unknown name raises `CommandError`."""
    check_shape(name)
    return SHAPES[name].config()


@cache
def skeleton(name: str) -> nn.Module:
    """The model of a shape without weights, on the device ``meta``."""
    with torch.device("meta"):
        model: nn.Module = transformers.AutoModelForImageTextToText.from_config(config_of(name))
    return model


def build(config: Any, dtype: torch.dtype, device: torch.device, attn: str | None, seed: int) -> Any:
    """A model of ``config`` with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    try:
        with torch.device(device):
            model: Any = transformers.AutoModelForImageTextToText.from_config(
                config, dtype=dtype, attn_implementation=attn
            )
    except (ImportError, ValueError) as error:  # an attention kernel that is not there
        raise CommandError(f"--attn {attn!r} cannot be used here: {first_line(error)}") from None
    return model.eval()
