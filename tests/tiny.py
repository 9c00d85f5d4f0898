"""Tiny real models of every family, and real inputs for them: saved tokenizers and processors, drawn images.

A batch is written as rows of items: an int is that many words of text; ``"image"`` an image of the family's usual size;
``(height, width)`` an image of that many *patches*; ``(frames, height, width)`` or ``(frames,)`` a video, where the family
takes videos. What a row contains depends on the seed and its place in the batch, not on the other rows, so
``inputs(family, rows, only=i)`` is row ``i`` of ``inputs(family, rows)`` alone.

Families that are built alike have a file together (`GROUPS`), which says what is not the same for all:

* ``FAMILIES``, and for each of them its class (``CLASSES``), the size in patches of its usual image (``USUAL``), the text
  of an image in a prompt (``IMAGE_TEXT``), the id of the placeholders that it becomes (``IMAGE_TOKEN``), and a batch with
  one image, with several, and with none (``ROWS``);
* its ``config`` around a language model, and its ``processor``;
* of families that take videos, a batch (``VIDEO_ROWS``), the text and the pixels of a video (``video``), and what the model
  is given of all videos of a batch (``videos``).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import tiny_cpm as cpm
import tiny_gemma as gemma
import tiny_gemma4 as gemma4
import tiny_llava as llava
import tiny_packed as packed
import tiny_rows as rows_of
import tiny_tiles as tiles
import torch
from PIL import Image
from tiny_parts import base, blocks, end, entries, lm, marked, positions, projector, text_logits, tower  # noqa: F401 - for tests
from tiny_shared import BLOCKS, GRID, LAYERS, PATCH, SPECIAL, TOKEN_ID, VIDEO_HERE, VIDEO_TOKEN, WORDS  # noqa: F401 - for tests
from torch import Tensor, nn
from transformers import PreTrainedModel

from foveate.lab.bench.flops import flop_counter  # noqa: F401 - for tests
from foveate.models import list_families

GROUPS: tuple[Any, ...] = (llava, packed, tiles, gemma, rows_of, gemma4, cpm)
GROUP = {family: group for group in GROUPS for family in group.FAMILIES}
FAMILIES = tuple(GROUP)
CLASSES = {family: group.CLASSES[family] for family, group in GROUP.items()}
IMAGE_TOKEN: dict[str, int] = {family: group.IMAGE_TOKEN[family] for family, group in GROUP.items()}

#: a padded tower, a packed one with windows, tiles put side by side, features added between decoder layers, pixel shuffle,
#: patches pooled in the projector and decoder layers of two kinds, all images in a single row, decoder layers without
#: attention, a merger in the middle of the tower
STRUCTURES = (
    *("llava", "qwen2_5_vl", "llava_next", "qwen3_vl", "internvl", "gemma3", "mistral3", "qwen3_5"),
    *cpm.FAMILIES,
)
#: those that run every method in `make test`: one with a padded tower, one with a packed tower
WHOLE = ("llava", "qwen2_5_vl")
#: another family but for the experts in its decoder, the text between frames, or the processor
SIBLINGS = (
    *("qwen2_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker", "qwen3_5_moe", "glm4v_moe", "glm46v"),
    *("llava_siglip", "llava_next_video", "smolvlm", "llava_pixtral"),
)

#: what the family file says, for each
SPECS = {family: list_families()[family] for family in FAMILIES}
CLS = tuple(family for family, spec in SPECS.items() if spec.tower.leading)
LLAVA = tuple(family for family in CLS if not SPECS[family].tower.joins)  # with CLIP, whose last block is not used
SEVERAL = (*tiles.FAMILIES, "gemma3", *cpm.FAMILIES)  # an image may be several of the tower's
#: some decoder layers carry a state in place of attention
RECURRENT = tuple(family for family, spec in SPECS.items() if spec.decoder.recurrent)
PACKED = packed.FAMILIES
PIXTRAL = rows_of.FAMILIES  # all images of a call in a single row of the tower
VIDEO = tuple(family for family, spec in SPECS.items() if spec.takes_videos)
#: older generate() repeats pixels for beams one by one (tiles, patches, images), and not those of a row as a group
GROUPED = (*SEVERAL, *PIXTRAL, *packed.OMNI, *gemma4.FAMILIES)
ONE_SIZE = {**llava.TOKENS, **gemma.TOKENS}  # tokens down and across, where all images have the same

Item = int | str | tuple[int, ...]


# -- models -------------------------------------------------------------------------------------------------------------


def config(family: str, **text: Any) -> Any:
    """The config of a tiny model; ``text`` overrides fields of its language model."""
    usual: dict[str, Any] = dict(
        vocab_size=len(TOKEN_ID) + len(tiles.MORE.get(family, ())),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=TOKEN_ID["<pad>"],
    )
    return GROUP[family].config(family, usual | text)


def window(family: str, layer: int) -> int | None:
    """How many tokens of the past the cache of a layer holds, or None: all."""
    text = config(family).get_text_config()
    kinds = getattr(text, "layer_types", None) or ("full_attention",)
    return int(text.sliding_window) - 1 if "sliding" in kinds[layer % len(kinds)] else None


@cache
def slides(family: str) -> bool:
    """Whether some decoder layers of its model slide."""
    return any(window(family, layer) for layer in range(LAYERS))


@cache
def looks_ahead(family: str) -> bool:
    """Whether some of a prompt sees what comes after it, as an image that sees all of itself."""
    with torch.no_grad():
        seen = model(family, "eager")(**inputs(family, [[1, "image", 1]]), output_attentions=True).attentions
    return any(bool(weights.triu(1).any()) for weights in seen if weights is not None)


def build(config: Any, impl: str = "sdpa", seed: int = 0, cls: Any = None) -> PreTrainedModel:
    """A model, of its family's class or another, with random weights: large enough that every token and position matters to
    the logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = (cls or CLASSES[config.model_type])(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(0.08 * torch.randn_like(parameter))
                if name.endswith("A_log"):
                    parameter.sub_(4.0)  # a state that lasts: 64 tokens ago is not yet forgotten
            if config.model_type in gemma4.FAMILIES:
                embeddings: Any = model.get_input_embeddings()
                embeddings.weight[config.text_config.pad_token_id] = 0.0  # as stock code takes for granted
    model.set_attn_implementation(impl)
    return model


def _warm(family: str, impl: str) -> PreTrainedModel:
    warm = build(config(family), impl)
    with torch.no_grad():
        warm(**inputs(family, [[1, "image"]]))  # stock code hooks modules of its own at their first forward
    return warm


_shared = cache(_warm)


def model(family: str, impl: str = "sdpa", *, fresh: bool = False) -> PreTrainedModel:
    """The tiny model of a family: one for the whole session, or a new one for tests that change it."""
    return _warm(family, impl) if fresh else _shared(family, impl)


# -- inputs -------------------------------------------------------------------------------------------------------------


@cache
def processor(family: str) -> Any:
    """The family's processor, or what does the same, after a round trip through a folder."""
    return GROUP[family].processor(family)


def inputs(
    family: str,
    rows: list[list[Item]],
    seed: int = 0,
    padding_side: str = "left",
    *,
    only: int | None = None,
) -> dict[str, Tensor]:
    """Inputs of a padded batch of ``rows``, or of one of them; see the top of this file. Whoever asks may change them."""
    return copy.deepcopy(_inputs(family, tuple(map(tuple, rows)), seed, padding_side, only))


@lru_cache(maxsize=256)
def _inputs(
    family: str, rows: tuple[tuple[Item, ...], ...], seed: int, padding_side: str, only: int | None
) -> dict[str, Tensor]:
    texts: list[str] = []
    images: list[list[Image.Image]] = []
    videos: list[Tensor] = []
    sizes: list[tuple[int, ...]] = []
    for number, row in enumerate(rows):
        if only is not None and number != only:
            continue
        generator = torch.Generator().manual_seed(1_000 * seed + number)
        text: list[str] = []
        images.append([])
        for item in row:
            if isinstance(item, int):
                text += [WORDS[i] for i in torch.randint(len(WORDS), (item,), generator=generator).tolist()]
            elif isinstance(item, tuple) and len(item) != 2:
                placeholders, pixels = GROUP[family].video(family, item, generator)
                text.append(placeholders)
                videos.append(pixels)
                sizes.append(item)
            else:
                text.append(GROUP[family].IMAGE_TEXT[family])
                images[-1].append(_draw(family, item, generator))
        texts.append(" ".join(text))
    if family in gemma.FAMILIES:
        return dict(gemma.process(family, processor(family), images, texts, padding_side))
    images = [row for row in images if row]
    flat: Any = images if family == "llava_onevision" else [image for row in images for image in row]
    processed = processor(family)(
        images=flat or None, text=texts, padding=True, padding_side=padding_side, return_tensors="pt"
    )
    ids = processed["input_ids"]
    if videos:  # processors want torchvision for videos: these are made by hand, and their placeholders filled in here
        here = ids == TOKEN_ID[VIDEO_HERE]
        ids[here] = IMAGE_TOKEN[family] if family in packed.GLM else VIDEO_TOKEN
        if "mm_token_type_ids" in processed:
            processed["mm_token_type_ids"][here] = 2
        processed |= GROUP[family].videos(family, videos, sizes)
    if family in packed.OMNI:
        processed.pop("mm_token_type_ids", None)  # the model does not take them
    elif family in (*PACKED, *gemma4.FAMILIES) and "mm_token_type_ids" not in processed:
        processed["mm_token_type_ids"] = (ids == IMAGE_TOKEN[family]).int() + 2 * (ids == VIDEO_TOKEN).int()
    return dict(processed)


def _draw(family: str, item: Item, generator: torch.Generator) -> Image.Image:
    """Noise over a gradient, in the size that the processor leaves alone."""
    usual = GROUP[family].USUAL[family]
    sides: Any = usual if item == "image" else item
    height, width = (PATCH * side for side in sides)
    ramp = torch.linspace(0, 128, height)[:, None, None] + torch.linspace(0, 64, width)[None, :, None]
    noise = torch.randint(64, (height, width, 3), generator=generator)
    return Image.fromarray((ramp + noise).to(torch.uint8).numpy())


def longer(family: str, batch: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """The batch with ``ids (B, L + n)``, its own and ``n`` generated ones."""
    n = ids.shape[1] - batch["input_ids"].shape[1]
    of_text = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": gemma.types_of_generated(family)}
    return {
        **batch,
        **{name: nn.functional.pad(batch[name], (0, n), value=of_text[name]) for name in of_text if name in batch},
        "input_ids": ids,
    }


def of_images(family: str, batch: dict[str, Tensor], which: slice) -> dict[str, Tensor]:
    """What a batch of one row with two equal images says of some of them."""
    made: dict[str, Tensor] = {}
    of_one = (
        "pixel_values",
        "pixel_attention_mask",
        "image_grid_thw",
        "image_sizes",
        "image_position_ids",
        "target_sizes",
    )
    for name in (*of_one, "batch_num_images"):
        if name not in batch:
            continue
        given, axis = batch[name], int(family in tiles.IDEFICS)
        if family in cpm.FAMILIES and name == "pixel_values":
            axis = -1
        half = given.shape[axis] // 2 if name != "batch_num_images" else 0  # (they were cut for one prompt)
        made[name] = given.narrow(axis, which.start * half, (which.stop - which.start) * half) if half else given
    return made


def visual_mask(family: str, batch: dict[str, Tensor]) -> Tensor:
    """``(B, L)`` bool: the placeholders of visual tokens (newlines are none)."""
    ids = batch["input_ids"]
    image, video = ids == IMAGE_TOKEN[family], ids == VIDEO_TOKEN
    if family in tiles.FAMILIES:
        unpadded = getattr(processor(family), "_get_unpadded_features", None)
        if bool(image.any()):
            image[image.clone()] = torch.tensor(tiles.is_patch(family, batch, unpadded))
    if family == "llava_onevision":
        video = video & nn.functional.pad(video[:, 1:], (0, 1))  # the last one of a video is a newline
    return image | video


def of_attention(family: str, per_layer: Sequence[Any]) -> list[Any]:
    """Those of one thing a layer that are of layers with attention."""
    return [each for i, each in enumerate(per_layer) if family not in RECURRENT or i not in packed.LINEAR]
