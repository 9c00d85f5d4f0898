"""Tiny models on disk with everything that a user loads: weights, tokenizer, image and video processor, chat template.

`load` gives them back as a user gets them, through the Auto classes, in the backend that these choose.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny
import tiny_tiles
import transformers
from PIL import Image
from tiny_shared import FOLDERS, special_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

VOCABULARY = 300
VIDEO = {"qwen2_5_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL", "internvl": "InternVL"}  # family -> its video processor
KIND = {"llava": "Llava", "llava_next": "LlavaNext", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
PLACES = {
    "llava": ("<image>\n", ""),
    "llava_next": ("<image>\n", ""),
    "internvl": ("<IMG_CONTEXT>\n", "<video>\n"),
    "qwen2_5_vl": (
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|vision_start|><|video_pad|><|vision_end|>",
    ),
}
PLACES["qwen3_vl"] = PLACES["qwen2_5_vl"]
TOKENS = {family: tiny.TOKEN_ID[text] for family, text in (("internvl", "<IMG_CONTEXT>"),)}
TOKENS |= dict.fromkeys(("qwen2_5_vl", "qwen3_vl"), tiny.VIDEO_TOKEN)
FOUR_FRAMES = {family: dict(fps=4) if family == "qwen3_vl" else dict(num_frames=4) for family in VIDEO}  # of a second

TEMPLATE = """
{%- for message in messages -%}
{{ message.role }}: {% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}IMAGE{% elif part.type == 'video' %}VIDEO{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}assistant: {% endif %}"""


def _tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Every byte a token, after the special ones, whose ids are those of `tiny`."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    more = tiny_tiles.MORE.get(family, ())
    special = ["<pad>", "<unk>", *tiny.SPECIAL[2:], *more]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    words.train_from_iterator(["the cat and the dog and the bird"], trainer)
    assert [words.token_to_id(word) for word in special] == list(range(len(special)))
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        padding_side="left",
        **special_tokens(tiny_tiles.NAMES.get(family), more),
    )


def _processor(family: str) -> Any:
    image, video = PLACES[family]
    template = TEMPLATE.replace("IMAGE", image).replace("VIDEO", video)
    tokenizer = _tokenizer(family)
    options: dict[str, Any] = dict(chat_template=template)
    images: Any = tiny.processor(family).image_processor
    if family in ("llava", "llava_next"):
        options |= dict(patch_size=tiny.PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    elif family == "internvl":
        options |= dict(image_seq_length=16)
        side = tiny_tiles.SIDE[family] * tiny.PATCH
        options["video_processor"] = transformers.InternVLVideoProcessor(size={"height": side, "width": side})
    else:
        options["video_processor"] = getattr(transformers, f"{VIDEO[family]}VideoProcessor")(
            patch_size=tiny.PATCH, size={"shortest_edge": (2 * tiny.PATCH) ** 2, "longest_edge": 10**6}
        )
    kind = getattr(transformers, f"{KIND.get(family, 'InternVL')}Processor")
    return kind(image_processor=images, tokenizer=tokenizer, **options)


@cache
def folder(family: str) -> Path:
    """Where the model of a family is saved."""
    path = Path(FOLDERS.name, f"{family}-saved")
    config = tiny.config(family, vocab_size=VOCABULARY)
    model = tiny.build(config)
    special = list(range(len(tiny.SPECIAL)))
    model.generation_config.update(pad_token_id=0, eos_token_id=None, suppress_tokens=special, max_new_tokens=6)
    model.save_pretrained(path)
    _processor(family).save_pretrained(path)
    return path


def load(family: str) -> tuple[Any, Any]:
    """Model and processor."""
    return AutoModelForImageTextToText.from_pretrained(folder(family)).eval(), AutoProcessor.from_pretrained(
        folder(family)
    )


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A photo of nothing in particular."""
    noise = np.random.default_rng(seed).integers(0, 96, (height, width, 3))
    ramp = np.linspace(0, 128, height)[:, None, None] + np.linspace(0, 31, width)[None, :, None]
    return Image.fromarray((noise + ramp).astype(np.uint8))


def film(path: Path, frames: int = 12, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    """A real mp4: a light square that walks over a picture."""
    ground = np.asarray(picture(height, width, seed))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            image = ground.copy()
            image[8:24, 4 * i % width : 4 * i % width + 12] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV instead of torchcodec, which wants the FFmpeg libraries of the system."""
    from transformers import video_processing_utils as utils
    from transformers.video_utils import load_video

    def load(video: Any, backend: str = "", **options: Any) -> Any:
        return load_video(video, backend="pyav", **options)

    monkeypatch.setattr(utils, "load_video", load)
    for name in ("is_torchcodec_usable", "is_torchcodec_available"):
        if hasattr(utils, name):
            monkeypatch.setattr(utils, name, lambda *_, **__: True)
