"""SmolLM2 that sees: a stock LLaVA of our vision tower and a language model that was pretrained on text.

``LlavaForConditionalGeneration`` with a CLIP tower of twelve blocks (patches of 16 px, so an image of 160 x 160 px becomes
100 tokens), its projector, and SmolLM2-135M-Instruct: thirty Llama layers of width 576. What is trained, tower, projector and
low-rank changes (LoRA) of the language model's matrices, is in this package; the language model itself is not, see `base`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from foveate_reference.model import make_config
from foveate_reference.vocabulary import CELL, SIZE

from .base import LANGUAGE_MODEL, BaseMissingError, base_folder, cache_folder, read_base

NAME = "smollm2"
FOLDER = Path(__file__).parents[1] / NAME
ADAPTER = "adapter.safetensors"
TOWER_DEPTH, TOWER_HIDDEN = 12, 192

IMAGE, IMAGE_ID = "<image>", 16
"""The image token takes the place of `<empty_output>`, which SmolLM2 has for notebooks: the vocabulary keeps its size."""
START, END, END_ID = "<|im_start|>", "<|im_end|>", 2

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    f"{{{{ '{START}' + message.role + '\\n' }}}}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    f"{{{{ '{IMAGE}\\n' if part.type == 'image' else part.text }}}}"
    "{%- endfor -%}"
    "{%- endif -%}"
    f"{{{{ '{END}\\n' }}}}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{ '{START}assistant\\n' }}}}{{%- endif -%}}"
)
"""SmolLM2's own, with images and without its system prompt."""


def make_smollm2_config(base: Path) -> LlavaConfig:
    """Return the configuration of a LLaVA with our tower and the language model in a folder."""
    seen = make_config("llava", tower_depth=TOWER_DEPTH, tower_hidden=TOWER_HIDDEN)
    # A part is made in the type that its own config names, and the folder's is that of its files.
    read = json.loads((base / "config.json").read_text()) | {"dtype": "float32"}
    return LlavaConfig(
        text_config=read,
        vision_config=cast(Any, seen.vision_config).to_dict(),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_token_index=IMAGE_ID,
        image_seq_length=(SIZE // CELL) ** 2,
        tie_word_embeddings=True,
    )


def make_smollm2(base: Path) -> LlavaForConditionalGeneration:
    """Return a LLaVA in float32 with the language model's weights; tower and projector are random."""
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(make_smollm2_config(base))
    read = read_base(base)
    model.model.language_model.load_state_dict(read.model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        max_new_tokens=8, do_sample=False, eos_token_id=END_ID, pad_token_id=END_ID
    )
    model.eval()
    return model


def make_smollm2_processor(base: Path) -> LlavaProcessor:
    """Return the processor: SmolLM2's tokenizer with an image token, and pictures of 160 x 160 px."""
    read = json.loads((base / "tokenizer.json").read_text())
    placeholders = [token for token in read["added_tokens"] if token["id"] == IMAGE_ID]
    if not placeholders:
        raise BaseMissingError(f"the tokenizer in {base} is not that of {LANGUAGE_MODEL}: it has no place for images")
    for token in placeholders:
        read["model"]["vocab"][IMAGE] = read["model"]["vocab"].pop(token["content"])
        token["content"] = IMAGE
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(read)),
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token="<|endoftext|>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def load(
    base: str | Path | None = None, adapter: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the trained model in evaluation mode, and its processor.

    Parameters
    ----------
    base : str or Path, optional
        Folder of the language model, see `base_folder`.
    adapter : str or Path, optional
        A file of `save_adapter`, or the folder of a training run; by default what `adapter_file` finds.
    dtype : torch.dtype
        Low-rank changes are added in float32 before.

    Raises
    ------
    BaseMissingError
        Where the language model is not here.
    ValueError
        Where the adapter does not fit the model, or there is none.
    """
    file = adapter_file(adapter)
    folder = base_folder(base)
    model = make_smollm2(folder)
    merge_adapter(model, file)
    return model.to(dtype), make_smollm2_processor(folder)  # type: ignore[arg-type] # stubs of transformers


def adapter_file(given: str | Path | None = None) -> Path:
    """Find what was trained: in the file or folder that is given, or else in this package, or in the user's cache.

    Raises
    ------
    ValueError
        Where there is none; the sentence says how to get it.
    """
    how = f"'foveate train reference --recipe {NAME} --out FOLDER'"
    if given is None:
        places = (FOLDER / ADAPTER, cache_folder() / NAME / ADAPTER)
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise ValueError(
                f"there are no weights of {NAME} yet, neither in the package nor at {places[1]}: train them with {how}, and "
                f"name FOLDER as the model, or put FOLDER/{ADAPTER} there"
            )
        return found
    path = Path(given)
    if path.is_file():
        return path
    if (path / ADAPTER).is_file():
        return path / ADAPTER
    if is_run(path):
        raise ValueError(
            f"the training of {NAME} in {path} has not ended: go on with {how.replace('FOLDER', str(path))}"
        )
    raise ValueError(f"{path} has no {ADAPTER}: {how} writes one")


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run of this model, finished or not."""
    return (folder / ADAPTER).is_file() or ((folder / "tower").is_dir() and not (folder / "config.json").is_file())


def save_adapter(
    file: Path, model: LlavaForConditionalGeneration, changes: Mapping[str, tuple[Tensor, Tensor]], scale: float
) -> None:
    """Write what was trained, as float16: tower, projector, and two thin matrices for each changed matrix.

    Parameters
    ----------
    file : Path
    model : LlavaForConditionalGeneration
    changes : mapping from str to pair of float (r, in) and (out, r)
        The low-rank change of each matrix of the language model, by the module's name in ``model.model.language_model``.
    scale : float
        Factor of their product.
    """
    tensors = {}
    for part in ("vision_tower", "multi_modal_projector"):
        for name, value in getattr(model.model, part).state_dict().items():
            tensors[f"{part}.{name}"] = value
    for name, (down, up) in changes.items():
        tensors[f"lora.{name}.down"], tensors[f"lora.{name}.up"] = down, up * scale
    halves = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in tensors.items()
        if value.is_floating_point()
    }
    partial = file.with_suffix(".partial")
    save_file(halves, partial, {"language_model": json.dumps(_shape(model))})
    os.replace(partial, file)


def merge_adapter(model: LlavaForConditionalGeneration, file: Path) -> None:
    """Put what was trained into a model of `make_smollm2`; the low-rank changes are added to its matrices."""
    tensors, language = read_adapter(model, file), model.model.language_model
    take_parts(model, tensors)
    with torch.no_grad():
        for name in tensors:
            if name.startswith("lora.") and name.endswith(".down"):
                matrix = name.removeprefix("lora.").removesuffix(".down")
                change = tensors[f"lora.{matrix}.up"] @ tensors[name]
                language.get_submodule(matrix).weight += change


def read_adapter(model: LlavaForConditionalGeneration, file: Path) -> dict[str, Tensor]:
    """Read a file of `save_adapter` that is meant for the language model of this model, as float32."""
    try:
        with safe_open(file, "pt") as opened:
            meant = json.loads((opened.metadata() or {}).get("language_model", "{}"))
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is no adapter of {NAME}: {error}") from None
    if meant != _shape(model):
        raise ValueError(f"{file} was trained for a language model of {meant}, and this one is {_shape(model)}")
    return tensors


def take_parts(model: LlavaForConditionalGeneration, tensors: Mapping[str, Tensor]) -> None:
    """Give a model the tower and the projector of `read_adapter`."""
    for part in ("vision_tower", "multi_modal_projector"):
        own = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        missing = getattr(model.model, part).load_state_dict(own, strict=False)
        if missing.unexpected_keys or any("position_ids" not in name for name in missing.missing_keys):
            raise ValueError(f"what was trained does not fit the {part} of {NAME}: {missing}")


def _shape(model: LlavaForConditionalGeneration) -> dict[str, int]:
    """What a language model must agree in for low-rank changes to fit it."""
    text = model.config.text_config
    return {
        name: getattr(text, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    }
