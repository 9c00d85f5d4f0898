"""The reference model: a Qwen2.5-VL of about two million parameters, its tokenizer and its processor.

The architecture is the stock ``Qwen2_5_VLForConditionalGeneration``: only the sizes, the vocabulary and the
chat template are ours. A 160 x 160 px image becomes 20 x 20 patches and, after merging 2 x 2, 100 visual
tokens.
"""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

from .scenes import CELL, SIZE, WORDS

PATH = Path(__file__).parent / "qwen2_5_vl"
"""Folder with the trained weights, in the format of ``from_pretrained``."""

PATCH = CELL // 2
PAD, UNKNOWN, END = "<|endoftext|>", "<|unk|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL = (PAD, UNKNOWN, END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)
TOKEN_ID = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
"""Token id of each special token and word."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    f"{{%- if part.type == 'image' -%}}{VISION_START}{IMAGE_PAD}{VISION_END}"
    f"{{%- elif part.type == 'video' -%}}{VISION_START}{VIDEO_PAD}{VISION_END}"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    f"{{%- if message.role == 'assistant' -%}}{END}{{%- endif -%}}"
    "{%- endfor -%}"
)
"""No role markers: a question ends with ``?``, and the answer follows. Short prompts keep training short."""


def make_config(
    *, layers: int = 10, hidden: int = 128, tower_depth: int = 4, tower_hidden: int = 96
) -> Qwen2_5_VLConfig:
    """Configuration of the reference model.

    Parameters
    ----------
    layers : int
        Decoder layers.
    hidden : int
        Decoder width, a multiple of 64 (heads are 32 wide, two query heads share a key and value head).
    tower_depth : int
        Vision blocks; every second one attends to the whole image, the others within 80 px windows.
    tower_hidden : int
        Vision width, a multiple of 24 (the width of a head).
    """
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(TOKEN_ID),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[4, 6, 6]),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=TOKEN_ID[END],
            pad_token_id=TOKEN_ID[PAD],
        ),
        vision_config=dict(
            depth=tower_depth,
            hidden_size=tower_hidden,
            intermediate_size=2 * tower_hidden,
            num_heads=tower_hidden // 24,
            patch_size=PATCH,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=SIZE // 2,
            out_hidden_size=hidden,
            fullatt_block_indexes=list(range(1, tower_depth, 2)),
        ),
        image_token_id=TOKEN_ID[IMAGE_PAD],
        video_token_id=TOKEN_ID[VIDEO_PAD],
        vision_start_token_id=TOKEN_ID[VISION_START],
        vision_end_token_id=TOKEN_ID[VISION_END],
        tie_word_embeddings=True,
    )
    return config


def make_model(config: Qwen2_5_VLConfig | None = None, *, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained reference model in float32; leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config or make_config())
    model.generation_config = GenerationConfig(
        max_new_tokens=2, do_sample=False, eos_token_id=TOKEN_ID[END], pad_token_id=TOKEN_ID[PAD]
    )
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the closed vocabulary; pads on the left."""
    tokenizer = Tokenizer(models.WordLevel(TOKEN_ID, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


class ImageProcessor(Qwen2_5_VLProcessor):
    """``Qwen2_5_VLProcessor`` less its video part, which transformers cannot load without torchvision."""

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        chat_template: str | None = None,
    ) -> None:
        # The base class takes the names of its parts from this signature.
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]


def make_processor() -> ImageProcessor:
    """Tokenizer and image processor.

    Images are resized so that their sides are multiples of 16 px and their area is between 80 x 80
    and 320 x 320 px.
    """
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (SIZE // 2) ** 2, "longest_edge": (SIZE * 2) ** 2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return ImageProcessor(images, make_tokenizer(), CHAT_TEMPLATE)


def load_processor(folder: Path = PATH) -> Qwen2_5_VLProcessor:
    """The processor of a folder: the stock one, or `ImageProcessor` where torchvision is missing.

    Without torchvision ``AutoProcessor`` fails for every Qwen2.5-VL, as it cannot make the video processor.
    """
    if is_torchvision_available():
        processor: Qwen2_5_VLProcessor = Qwen2_5_VLProcessor.from_pretrained(folder)
        return processor
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return ImageProcessor(images, tokenizer, tokenizer.chat_template)


def load(
    dtype: torch.dtype = torch.float32,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """The trained reference model, in evaluation mode, and its processor.

    >>> model, processor = load()
    >>> sum(p.numel() for p in model.parameters())
    2095840
    """
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(PATH, dtype=dtype)
    return model.eval(), load_processor()


def export(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> Path:
    """Write model (bfloat16), tokenizer and processor to a folder for ``from_pretrained``; return it."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    copy = deepcopy(model)
    copy.bfloat16()
    copy.save_pretrained(partial)
    (partial / "model.safetensors").chmod(0o644)  # written for the owner only; a package is for all
    make_processor().save_pretrained(partial)
    _make_portable(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    return folder


def _make_portable(folder: Path) -> None:
    """Name the stock processor classes, for ``AutoProcessor``, and drop what only some versions know."""
    names = ("config.json", "processor_config.json", "tokenizer_config.json")
    model, processor, tokenizer = files = [json.loads((folder / name).read_text()) for name in names]
    model["vision_config"].pop("rope_parameters", None)
    images = processor["image_processor"]
    images.pop("image_processor_type")
    processor["video_processor"] = images | {"video_processor_type": "Qwen2VLVideoProcessor"}
    images["image_processor_type"] = "Qwen2VLImageProcessor"
    processor["processor_class"] = tokenizer["processor_class"] = Qwen2_5_VLProcessor.__name__
    for name, content in zip(names, files, strict=True):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
