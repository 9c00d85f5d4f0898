"""The reference models: two architectures of two to three million parameters, their tokenizer and processors.

Both are stock classes of transformers, ``Qwen2_5_VLForConditionalGeneration`` and
``LlavaForConditionalGeneration``: only the sizes, the vocabulary and the chat template are ours. In both, one
visual token stands for a square of 16 x 16 px, so an image of 160 x 160 px becomes 100 of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

from .vocabulary import CELL, SIZE, WORDS

Config: TypeAlias = Qwen2_5_VLConfig | LlavaConfig
Model: TypeAlias = Qwen2_5_VLForConditionalGeneration | LlavaForConditionalGeneration
Processor: TypeAlias = Qwen2_5_VLProcessor | LlavaProcessor

ARCHITECTURES = ("qwen2_5_vl", "llava")
PATHS = {name: Path(__file__).parent / name for name in ARCHITECTURES}
"""Folder of each architecture with the trained weights, in the format of ``from_pretrained``."""
MODELS = (*ARCHITECTURES, "smollm2")
"""All that `load` knows by name; `smollm2` is made of a language model and an adapter (`foveate_reference.language`)."""

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
    architecture: str = "qwen2_5_vl",
    *,
    layers: int = 10,
    hidden: int = 128,
    tower_depth: int = 4,
    tower_hidden: int | None = None,
) -> Config:
    """Configuration of a reference model.

    Parameters
    ----------
    architecture : str
        A word of `ARCHITECTURES`.
    layers : int
        Decoder layers.
    hidden : int
        Decoder width, a multiple of 64 (heads are 32 wide, two query heads share a key and value head).
    tower_depth : int
        Vision blocks that are used. In Qwen2.5-VL every second one attends to the whole image, the others
        within 80 px windows. LLaVA has one more, and reads what enters it.
    tower_hidden : int, optional
        Vision width, a multiple of the width of a head: of 24 (Qwen2.5-VL, 96 by default) or 32 (LLaVA, 192).
    """
    text: dict[str, Any] = dict(
        vocab_size=len(TOKEN_ID),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=TOKEN_ID[END],
        pad_token_id=TOKEN_ID[PAD],
    )
    if architecture == "llava":
        width = tower_hidden or 192
        return LlavaConfig(
            text_config=text | dict(model_type="llama", head_dim=32),
            vision_config=dict(
                model_type="clip_vision_model",
                image_size=SIZE,
                patch_size=CELL,
                hidden_size=width,
                intermediate_size=2 * width,
                projection_dim=width,
                num_hidden_layers=tower_depth + 1,
                num_attention_heads=width // 32,
            ),
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_token_index=TOKEN_ID[IMAGE_PAD],
            image_seq_length=(SIZE // CELL) ** 2,
            tie_word_embeddings=True,
        )
    width = tower_hidden or 96
    text["rope_parameters"]["mrope_section"] = [4, 6, 6]
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=dict(
            depth=tower_depth,
            hidden_size=width,
            intermediate_size=2 * width,
            num_heads=width // 24,
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


def make_model(config: Config, *, seed: int) -> Model:
    """An untrained reference model in float32; leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Model = (
            LlavaForConditionalGeneration(config)
            if isinstance(config, LlavaConfig)
            else Qwen2_5_VLForConditionalGeneration(config)
        )
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


def make_processor(architecture: str = "qwen2_5_vl") -> Processor:
    """Tokenizer and image processor.

    For Qwen2.5-VL images are resized so that their sides are multiples of 16 px and their area is between
    80 x 80 and 480 x 480 px. For LLaVA they are resized to a shorter side of 160 px and their central
    160 x 160 px are taken: cut larger images into `tiles` before.
    """
    if architecture == "llava":
        return LlavaProcessor(
            CLIPImageProcessorPil(
                size={"shortest_edge": SIZE},
                crop_size={"height": SIZE, "width": SIZE},
                image_mean=[0.5] * 3,
                image_std=[0.5] * 3,
            ),
            make_tokenizer(),
            patch_size=CELL,
            vision_feature_select_strategy="default",
            chat_template=CHAT_TEMPLATE,
            image_token=IMAGE_PAD,
            num_additional_image_tokens=1,
        )
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (SIZE // 2) ** 2, "longest_edge": (SIZE * 3) ** 2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return ImageProcessor(images, make_tokenizer(), CHAT_TEMPLATE)


def tiles(images: Sequence[NDArray[np.uint8]], side: int = SIZE) -> list[NDArray[np.uint8]]:
    """Images (H, W, 3) cut into squares, row by row; their sides are multiples of `side` px."""
    return [
        image[top : top + side, left : left + side]
        for image in images
        for top in range(0, image.shape[0], side)
        for left in range(0, image.shape[1], side)
    ]


def load_processor(folder: Path) -> Processor:
    """The stock processor of a folder, but `ImageProcessor` for Qwen2.5-VL where torchvision is missing.

    Without torchvision ``AutoProcessor`` fails for every Qwen2.5-VL, as it cannot make the video processor.
    """
    if is_torchvision_available() or _architecture(folder) == "llava":
        processor: Processor = AutoProcessor.from_pretrained(folder)
        return processor
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return ImageProcessor(images, tokenizer, tokenizer.chat_template)


def _architecture(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])


def load(name: str = "qwen2_5_vl", dtype: torch.dtype = torch.float32) -> tuple[Model, Processor]:
    """A trained reference model, in evaluation mode, and its processor.

    Parameters
    ----------
    name : str
        A word of `MODELS`; or the folder of a training run of `smollm2`.
    dtype : torch.dtype

    Raises
    ------
    BaseMissingError
        Where the language model of `smollm2` is not here; the sentence says how to get it.
    ValueError
        Where there is no such model, or its weights are not whole.

    >>> model, processor = load("llava")
    >>> model.config.model_type
    'llava'
    """
    if name in PATHS:
        made: Any = LlavaForConditionalGeneration if name == "llava" else Qwen2_5_VLForConditionalGeneration
        model: Model = made.from_pretrained(PATHS[name], dtype=dtype).eval()
        return model, load_processor(PATHS[name])
    from . import language  # which is built on this module

    if name == language.NAME or language.is_run(Path(name)):
        return language.load(adapter=None if name == language.NAME else name, dtype=dtype)
    raise ValueError(f"no reference model {name!r}; there are {', '.join(MODELS)}")


def export(model: Model, folder: Path) -> Path:
    """Write model (bfloat16, files of at most 16 MB), tokenizer and processor to a folder for ``from_pretrained``."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    copy = deepcopy(model)
    copy.bfloat16()
    copy.save_pretrained(partial, max_shard_size="16MB")
    for path in partial.glob("*.safetensors"):
        path.chmod(0o644)  # written for the owner only; a package is for all
    make_processor(model.config.model_type).save_pretrained(partial)
    _make_portable(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    return folder


def _make_portable(folder: Path) -> None:
    """Name the stock processor classes, for ``AutoProcessor``, and drop what only some versions know."""
    names = ("config.json", "processor_config.json", "tokenizer_config.json")
    model, processor, tokenizer = files = [json.loads((folder / name).read_text()) for name in names]
    images = processor["image_processor"]
    if model["model_type"] == "llava":
        stock = LlavaProcessor.__name__
        images["image_processor_type"] = "CLIPImageProcessor"
    else:
        stock = Qwen2_5_VLProcessor.__name__
        model["vision_config"].pop("rope_parameters", None)
        processor["video_processor"] = images | {"video_processor_type": "Qwen2VLVideoProcessor"}
        processor["video_processor"].pop("image_processor_type")
        images["image_processor_type"] = "Qwen2VLImageProcessor"
    processor["processor_class"] = tokenizer["processor_class"] = stock
    for name, content in zip(names, files, strict=True):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
