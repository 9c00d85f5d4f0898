"""What all tiny models share: their sizes, their vocabulary, and tokenizers and processors that have been on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast, ProcessorMixin

LAYERS = 6
BLOCKS = 4
PATCH = 4  # pixels
GRID = (6, 8)  # patches of the usual image, where images may have any size

SPECIAL = (
    *("<pad>", "<unk>", "<image>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|video_here|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
)
WORDS = tuple(f"word{i}" for i in range(111))
TOKEN_ID = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
VIDEO_TOKEN = TOKEN_ID["<|video_pad|>"]
VIDEO_HERE = "<|video_here|>"  # in a text, until the placeholders of a video are filled in

FOLDERS = tempfile.TemporaryDirectory(prefix="foveate-")  # goes with the process


def special_tokens(names: dict[str, str] | None = None, more: Sequence[str] = ()) -> dict[str, Any]:
    """Options of a tokenizer that make `SPECIAL` and ``more`` special.

    ``names`` are those by which some processors ask their tokenizer for a token.
    """
    words = [*SPECIAL[2:], *more]  # without padding and unknown, which have options of their own
    if names is None:
        return {"additional_special_tokens": words}
    rest = {f"special_{i}_token": word for i, word in enumerate(words) if word not in names.values()}
    return {"extra_special_tokens": names | rest}


def make_tokenizer(names: dict[str, str] | None = None, more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A word is a token; see `special_tokens`."""
    ids = TOKEN_ID | {word: i for i, word in enumerate(more, start=len(TOKEN_ID))}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        **special_tokens(names, more),
    )


def reload_tokenizer(family: str, tokenizer: Any) -> Any:
    """The tokenizer after a round trip through a folder."""
    folder = Path(FOLDERS.name, family)
    tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def reload_processor(family: str, processor: Any, **how: Any) -> Any:
    """The processor after a round trip through a folder."""
    folder = Path(FOLDERS.name, family)
    processor.save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder, **how)


def reload_parts(family: str, kind: Any, images: Any, tokenizer: Any, **options: Any) -> Any:
    """Without torchvision there is no video processor, so a processor cannot be loaded whole, but its parts can."""
    folder = Path(FOLDERS.name, family)
    images.save_pretrained(folder)
    loaded = type(images).from_pretrained(folder), reload_tokenizer(family, tokenizer)

    def start(self: Any, image_processor: Any = None, tokenizer: Any = None) -> None:
        kind.__init__(self, image_processor=image_processor, tokenizer=tokenizer, **options)

    return type(kind.__name__, (kind, _NoVideo), {"__init__": start})(*loaded)


class _NoVideo(ProcessorMixin):
    def __init__(self, *parts: Any, **rest: Any) -> None:
        super().__init__(*(part for part in parts if part is not None), **rest)
