"""A tiny InternVL with the config, and the names of weights, that its authors publish; vLLM reads it, transformers does not."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import saved
import tiny
import tiny_shared
import tiny_tiles
import torch
from safetensors.torch import save_file

TILE = tiny_tiles.SIDE["internvl"] * tiny.PATCH
TOKENS = (tiny_tiles.SIDE["internvl"] // 2) ** 2  # of a tile
DYNAMIC = dict(min_dynamic_patch=1, max_dynamic_patch=4, dynamic_image_size=True, use_thumbnail=True)
NAMES = {  # transformers' -> theirs
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_model.",
    "model.multi_modal_projector.layer_norm": "mlp1.0",
    "model.multi_modal_projector.linear_1": "mlp1.1",
    "model.multi_modal_projector.linear_2": "mlp1.3",
    "cls_token": "class_embedding",
    "position_embeddings": "position_embedding",
    "patch_embeddings.projection": "patch_embedding",
    "encoder.layer.": "encoder.layers.",
    ".attention.": ".attn.",
    "projection_layer": "proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
}
CODE = """
from transformers import PretrainedConfig, Qwen2Config

class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, **others):
        super().__init__(**others)
        self.vision_config, self.llm_config = PretrainedConfig(**(vision_config or {})), Qwen2Config(**(llm_config or {}))
"""


def _named(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, x in weights.items():
        if re.search(r"vision_tower.*\.[kv]_proj\.", name):
            continue
        if re.search(r"vision_tower.*\.q_proj\.", name):
            x = torch.cat([weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            name = name.replace("q_proj", "qkv")
        kept = name.startswith("model.language_model.")
        for old, new in list(NAMES.items())[: 1 if kept else None]:
            name = name.replace(old, new)
        found[name] = x.contiguous().clone()
    return found


@cache
def folders() -> tuple[Path, Path]:
    """Where the same model is saved, as its authors would and as transformers does."""
    theirs, stock = (Path(tiny_shared.FOLDERS.name, f"internvl-{name}") for name in ("chat", "stock"))
    config = tiny.config("internvl", vocab_size=saved.VOCABULARY, hidden_size=128)
    vision = config.vision_config
    vision.use_qk_norm = vision.attention_bias = True  # as in the larger ones
    model = tiny.build(config)
    model.generation_config.update(pad_token_id=0, eos_token_id=None)
    model.save_pretrained(stock)
    saved._processor("internvl").save_pretrained(stock)
    saved._tokenizer("internvl").save_pretrained(theirs)
    save_file(_named(dict(model.state_dict())), theirs / "model.safetensors", metadata={"format": "pt"})
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "hidden_act")
    described = dict(
        architectures=["InternVLChatModel"],
        model_type="internvl_chat",
        auto_map={"AutoConfig": "configuration.InternVLChatConfig"},
        downsample_ratio=config.downsample_ratio,
        ps_version="v2",
        force_image_size=TILE,
        select_layer=-1,
        **DYNAMIC,
        llm_config=dict(config.text_config.to_dict(), architectures=["Qwen2ForCausalLM"]),
        vision_config=dict(
            **{name: getattr(vision, name) for name in names},
            **dict(image_size=TILE, patch_size=tiny.PATCH, qkv_bias=True, qk_normalization=True),
            **dict(norm_type=vision.norm_type, layer_norm_eps=vision.layer_norm_eps, initializer_factor=0.5),
        ),
    )
    (theirs / "config.json").write_text(json.dumps(described))
    (theirs / "configuration.py").write_text(CODE)
    return theirs, stock


def inputs(tokenizer: Any, wanted: dict[str, Any]) -> dict[str, torch.Tensor]:
    """For transformers, what vLLM makes of a request: its tiles, and its text between them, which transformers has none of."""
    from vllm.transformers_utils.processors.internvl import InternVLImageProcessor, InternVLVideoProcessor

    text, data = wanted["prompt"], wanted.get("multi_modal_data", {})
    pixels: dict[str, list[torch.Tensor]] = {"image": [], "video": []}
    for image in data.get("image", ()):
        pixels["image"].append(InternVLImageProcessor(TILE, **DYNAMIC)(image)["pixel_values_flat"])
    for frames, _ in data.get("video", ()):
        pixels["video"].append(InternVLVideoProcessor(TILE)(frames)["pixel_values_flat_video"])
    ordered = []
    for kind in re.findall("<(image|video)>", text):
        tiles = pixels[kind].pop(0)
        ordered.append(tiles)
        if kind == "image":
            place = f"<img>{'<IMG_CONTEXT>' * TOKENS * len(tiles)}</img>"
        else:
            place = "".join(f"Frame{i + 1}: <img>{'<IMG_CONTEXT>' * TOKENS}</img>" for i in range(len(tiles)))
        text = text.replace(f"<{kind}>", place, 1)
    found = {name: x for name, x in tokenizer(text, return_tensors="pt").items() if name != "token_type_ids"}
    return {**found, "pixel_values": torch.cat(ordered)} if ordered else found
