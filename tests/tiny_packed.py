"""Tiny models with a packed tower, which takes grids of any size: Qwen-VL, Qwen-Omni and GLM-V; used through `tiny`.

Here ``(height, width)`` is an image of that many patches (even numbers, four patches make a token), and ``(frames, height,
width)`` a video: from Qwen3-VL on, and in GLM, a timestamp and a run of placeholders for every frame.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny_shared import (
    BLOCKS,
    GRID,
    PATCH,
    TOKEN_ID,
    VIDEO_HERE,
    VIDEO_TOKEN,
    WORDS,
    make_tokenizer,
    reload_parts,
    reload_processor,
)
from torch import Tensor
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

CLASSES = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen2_5_omni_thinker": Qwen2_5OmniThinkerForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
    "qwen3_vl_moe": Qwen3VLMoeForConditionalGeneration,
    "qwen3_omni_moe_thinker": Qwen3OmniMoeThinkerForConditionalGeneration,
    "qwen3_5": Qwen3_5ForConditionalGeneration,
    "qwen3_5_moe": Qwen3_5MoeForConditionalGeneration,
    "glm4v": Glm4vForConditionalGeneration,
    "glm4v_moe": Glm4vMoeForConditionalGeneration,
    "glm46v": Glm46VForConditionalGeneration,
}
FAMILIES = tuple(CLASSES)
WINDOWS = ("qwen2_5_vl", "qwen2_5_omni_thinker")  # in the tower
OMNI = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")  # with sound
QWEN3 = ("qwen3_vl", "qwen3_vl_moe")
DEEPSTACK = (*QWEN3, "qwen3_omni_moe_thinker")
HYBRID = ("qwen3_5", "qwen3_5_moe")
GLM = ("glm4v", "glm4v_moe", "glm46v")  # images and videos look alike in the prompt, and there is only one of the two
STAMPED = (*QWEN3, *HYBRID, *GLM)  # a timestamp before every frame of a video
LINEAR = (0, 4)  # layers without attention, where there are some; what tests read attention of are others

USUAL = dict.fromkeys(FAMILIES, GRID)
IMAGE_TEXT = dict.fromkeys(FAMILIES, "<|vision_start|> <|image_pad|> <|vision_end|>")
IMAGE_TOKEN = dict.fromkeys(FAMILIES, TOKEN_ID["<|image_pad|>"])
ROWS: dict[str, list[list[Any]]] = {family: [[3, (8, 8), 5], [2, (4, 12), 4, (8, 4), 7], [6]] for family in FAMILIES}
VIDEO_ROWS: dict[str, list[list[Any]]] = {
    **{family: [[3, (2, 4, 8), 5], [2, (4, 8), 4, (3, 4, 4), 7]] for family in FAMILIES},
    **{family: [[3, (2, 4, 8), 5], [2, (3, 4, 4), 7]] for family in GLM},
}

AUDIO_TOKEN, AUDIO_START = TOKEN_ID["<image>"], TOKEN_ID["<|im_end|>"]  # Omni has no other use for these
MELS = 8  # and its sounds so many channels
SOUND: dict[str, Any] = dict(
    num_mel_bins=MELS, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=24
)
SOUND |= dict(max_source_positions=16)


def config(family: str, text: dict[str, Any]) -> Any:
    """The config around a language model's ``text``."""
    vision = dict(depth=BLOCKS, num_heads=2, patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2)
    ids = dict(image_token_id=IMAGE_TOKEN[family], video_token_id=VIDEO_TOKEN)
    kind = "image" if family in GLM else "vision"
    ids |= {f"{kind}_start_token_id": TOKEN_ID["<|vision_start|>"], f"{kind}_end_token_id": TOKEN_ID["<|vision_end|>"]}
    if family in GLM:
        return _glm(family, text, vision, ids)
    if family == "qwen2_vl":
        text["rope_parameters"] = rotary(text, 2, 3, 3)
        vision |= dict(embed_dim=32, hidden_size=text["hidden_size"], mlp_ratio=2)
        return Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    vision |= dict(hidden_size=32, intermediate_size=64, out_hidden_size=text["hidden_size"])
    if family in WINDOWS:
        return _windows(family, text, vision, ids)
    vision |= dict(num_position_embeddings=25)
    if family in DEEPSTACK:
        return _deepstack(family, text, vision, ids)
    text = hybrid(text)
    if family == "qwen3_5":
        return Qwen3_5Config(text_config=text, vision_config=vision, **ids)
    text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=40)
    return Qwen3_5MoeConfig(text_config=text, vision_config=vision, **ids)


def _windows(family: str, text: dict[str, Any], vision: dict[str, Any], ids: dict[str, Any]) -> Any:
    text["rope_parameters"] = rotary(text, 2, 3, 3)
    vision |= dict(window_size=16, fullatt_block_indexes=[1, 3])  # windows of 2x2 tokens
    if family == "qwen2_5_vl":
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    audio = SOUND | dict(output_dim=text["hidden_size"], n_window=4)
    ids |= dict(audio_token_id=AUDIO_TOKEN, audio_start_token_id=AUDIO_START)
    return Qwen2_5OmniThinkerConfig(text_config=text, vision_config=vision, audio_config=audio, **ids)


def _deepstack(family: str, text: dict[str, Any], vision: dict[str, Any], ids: dict[str, Any]) -> Any:
    text["rope_parameters"] = rotary(text, 2, 3, 3, mrope_interleaved=True)
    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    vision |= dict(deepstack_visual_indexes=[0, 2, 3])
    if family == "qwen3_vl":
        return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, mlp_only_layers=[1])
    if family == "qwen3_vl_moe":
        return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **ids)
    audio = SOUND | dict(output_dim=text["hidden_size"], n_window=50, n_window_infer=100, downsample_hidden_size=8)
    ids |= dict(audio_token_id=AUDIO_TOKEN, audio_start_token_id=AUDIO_START)
    return Qwen3OmniMoeThinkerConfig(text_config=text, vision_config=vision, audio_config=audio, **ids)


def _glm(family: str, text: dict[str, Any], vision: dict[str, Any], ids: dict[str, Any]) -> Any:
    text["rope_parameters"] = rotary(text, 1, 1, 2, partial_rotary_factor=0.5)
    vision |= dict(hidden_size=32, out_hidden_size=text["hidden_size"], intermediate_size=48, image_size=5 * PATCH)
    if family == "glm4v":
        return Glm4vConfig(text_config=text, vision_config=vision, **ids)
    if family == "glm46v":
        text, vision = text | {"model_type": "glm4v_text"}, vision | {"model_type": "glm4v_vision"}
        return Glm46VConfig(text_config=text, vision_config=vision, **ids)
    text |= dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, first_k_dense_replace=1)
    return Glm4vMoeConfig(text_config=text, vision_config=vision, **ids)


def hybrid(text: dict[str, Any]) -> dict[str, Any]:
    """Qwen3.5's language model: layers with attention and others with a state."""
    text["rope_parameters"] = rotary(text, 2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    text["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
    kinds = ["linear_attention" if i in LINEAR else "full_attention" for i in range(text["num_hidden_layers"])]
    heads = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12)
    return dict(layer_types=kinds) | heads | text


def rotary(text: dict[str, Any], *sixteenths: int, **how: Any) -> dict[str, Any]:
    """M-RoPE with that many sixteenths of a head for time, height and width."""
    sixteenth = text["hidden_size"] // text["num_attention_heads"] // 16
    return dict(
        rope_type="default", rope_theta=10_000.0, mrope_section=[count * sixteenth for count in sixteenths], **how
    )


def processor(family: str) -> Any:
    """The family's processor; without torchvision, one without videos."""
    kinds: dict[str, tuple[Any, str]] = {
        "qwen2_vl": (Qwen2VLProcessor, "Qwen2VL"),
        "qwen2_5_vl": (Qwen2_5_VLProcessor, "Qwen2VL"),
        "qwen2_5_omni_thinker": (Qwen2_5OmniProcessor, "Qwen2VL"),
        "qwen3_omni_moe_thinker": (Qwen3OmniMoeProcessor, "Qwen2VL"),
        **dict.fromkeys((*QWEN3, *HYBRID), (Qwen3VLProcessor, "Qwen3VL")),
        **dict.fromkeys(GLM, (Glm4vProcessor, "Glm4v")),
        "glm46v": (Glm46VProcessor, "Glm46V"),
    }
    kind, of_videos = kinds[family]
    size = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": (64 * PATCH) ** 2}
    of_images: Any = Glm4vImageProcessorPil if family in GLM else Qwen2VLImageProcessorPil
    images = of_images(patch_size=PATCH, merge_size=2, temporal_patch_size=2, size=size)
    tokenizer = make_tokenizer(_names(family))
    if is_torchvision_available():
        parts = dict(image_processor=images, tokenizer=tokenizer)
        parts["video_processor"] = getattr(transformers, f"{of_videos}VideoProcessor")(patch_size=PATCH)
        if family in OMNI:
            parts["feature_extractor"] = WhisperFeatureExtractor(MELS)
        return reload_processor(family, kind(**parts))
    made = reload_parts(family, kind, images, tokenizer)
    if family in OMNI:
        made.video_processor = images  # older versions ask it for its merge size, whether there is a video or not
    return made


def _names(family: str) -> dict[str, str] | None:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    if family in OMNI:
        names |= {"audio_token": "<image>", "audio_bos_token": "<|im_end|>", "audio_eos_token": "<unk>"}
        return names | {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    return names if family in GLM else None


def video(family: str, size: tuple[int, int, int], generator: torch.Generator) -> tuple[str, Tensor]:
    """Text and patches of a video."""
    frames, height, width = size
    patches = torch.randn(frames * height * width, 3 * 2 * PATCH**2, generator=generator)
    if family in STAMPED:
        return stamped(size), patches
    return f"<|vision_start|> {VIDEO_HERE * (frames * height * width // 4)} <|vision_end|>", patches


def stamped(size: tuple[int, int, int]) -> str:
    """Text of a video with a timestamp before every frame."""
    frames, height, width = size
    run = f"<|vision_start|> {VIDEO_HERE * (height * width // 4)} <|vision_end|>"
    return " ".join(f"{WORDS[frame]} {run}" for frame in range(frames))


def videos(family: str, pixels: list[Tensor], sizes: list[tuple[int, int, int]]) -> dict[str, Tensor]:
    """What a prompt with videos brings besides text."""
    made = {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(sizes)}
    return made | {"video_second_per_grid": torch.ones(len(sizes))} if family in OMNI else made
