"""Tiny models of any type, with random weights, from its config class alone: sizes shrink by the names of their fields."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from foveate.errors import UnsupportedModelError, nearest

LAYERS, PATCH, SIDE, WIDTH, HEAD = 4, 4, 8, 64, 16  # SIDE: patches along an image
LARGEST = 40_000_000  # parameters of a model that is still tiny

#: values of fields, by name, wherever they are
SIZES: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers", "encoder_layers", "n_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(
        ("head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "global_head_dim"), HEAD
    ),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim"), HEAD // 2),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("linear_num_value_heads", "num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "encoder_ffn_dim", "ffn_dim"), 96),
    **dict.fromkeys(("shared_expert_intermediate_size", "intermediate_size_mlp", "expert_intermediate_size"), 48),
    **dict.fromkeys(("image_size", "force_image_size"), SIDE * PATCH),
    **dict.fromkeys(("out_hidden_size", "vision_output_dim"), WIDTH),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 128),
    **dict.fromkeys(("alignment_intermediate_size", "projector_hidden_size", "hidden_size_per_layer_input"), 32),
    "patch_size": PATCH,
    "max_position_embeddings": 512,
    "position_embedding_size": 64,
    "num_position_embeddings": 64,
    "sliding_window": 16,
    "window_size": 4 * PATCH,
    "fullatt_block_indexes": [1, 3],
    "deepstack_visual_indexes": [0, 1, 2],
    "insert_layer_id": 1,
    "hidden_stride": 2,
    "mm_tokens_per_image": SIDE * SIDE // 16,
    "image_grid_pinpoints": [[SIDE * PATCH, 2 * SIDE * PATCH], [2 * SIDE * PATCH, SIDE * PATCH]],
    "mlp_only_layers": [],
    "vision_feature_layer": [-1, -2],
    "base_channels": 32,
    "latent_channels": 32,
    "num_embeddings": 16,
    "image_token_embed_dim": WIDTH,
    "num_kv_shared_layers": 0,
}
WIDTHS = ("hidden_size", "embed_dim", "d_model", "dim", "projection_dim", "text_hidden_size")
LISTED = ("layer_types", "mlp_layer_types")  # one for every layer


def config_of(model_type: str) -> Any:
    """The config of a tiny model of a type.

    Raises:
        UnsupportedModelError: transformers has no such type, or none that takes images and text.
    """
    if model_type not in CONFIG_MAPPING:
        hint = nearest(model_type, sorted(CLASSES))
        raise UnsupportedModelError(f"this transformers has no model type {model_type!r}{hint}")
    if model_type not in CLASSES:
        raise UnsupportedModelError(f"transformers has no model of type {model_type!r} that takes images and text")
    cls = CONFIG_MAPPING[model_type]
    default = cls()
    if getattr(default, "vision_config", None) is None:
        raise UnsupportedModelError(f"a {model_type!r} model has no vision part: its config has no vision_config")
    return shrunk(default)


def shrunk(config: Any) -> Any:
    """A copy of a config with small sizes and token ids that fit its vocabulary.

    Raises:
        UnsupportedModelError: sizes depend on each other in a way that the rules do not know.
    """
    plain = config.to_dict()
    width = 32 if _has_fused_width(plain.get("vision_config") or {}) else WIDTH
    small = {
        name: _shrink(value, WIDTH if "vision" not in name else width) if isinstance(value, dict) else value
        for name, value in plain.items()
    }
    for name in small:
        if "mrope_section" in getattr(type(getattr(config, name, None)), "ignore_keys_at_rope_validation", ()):
            small[name]["rope_parameters"] = _sections(small[name])
    small |= {name: _sized(name, value, WIDTH) for name, value in plain.items() if not isinstance(value, dict)}
    small |= {
        name: 100 + i for i, name in enumerate(sorted(filter(_is_id, plain))) if not isinstance(plain[name], list)
    }
    if "audio_config" in plain:  # which its class does not give a default
        small.setdefault("vision_start_token_id", 98)
    for name in ("transformers_version", "architectures", "dtype", "torch_dtype"):
        small.pop(name, None)
    try:
        return type(config)(**small)
    except Exception as error:  # whatever a config class says of fields that do not fit together
        raise UnsupportedModelError(
            f"the config of a {config.model_type!r} cannot be made small by rules ({type(error).__name__}: "
            f"{str(error)[:200]}): give a config or a folder of a small one"
        ) from error


def _is_id(name: str) -> bool:
    """Whether a field is the id of a token: checkpoints have those that have no default, too."""
    return name.endswith(("_id", "token_index", "token_ids")) and name not in SIZES


def _has_fused_width(vision: Mapping[str, Any]) -> bool:
    """Whether the tower has a width of its own for what it hands on (Qwen2-VL calls that `hidden_size`)."""
    return "embed_dim" in vision and "hidden_size" in vision


def _shrink(part: Mapping[str, Any], width: int) -> dict[str, Any]:
    """A sub-config with small sizes."""
    small = {name: _sized(name, value, width) for name, value in part.items()}
    if _has_fused_width(part):
        small |= {"embed_dim": 32, "hidden_size": WIDTH}
    for name in LISTED:
        if isinstance(part.get(name), list) and part[name]:
            small[name] = _kinds(part[name])
    rope = small.get("rope_parameters")
    if isinstance(rope, dict):
        small["rope_parameters"] = _rope(rope, int(small.get("head_dim") or HEAD))
    for name in ("transformers_version", "architectures", "dtype", "torch_dtype", "per_layer_config"):
        small.pop(name, None)
    return small


def _sized(name: str, value: Any, width: int) -> Any:
    if isinstance(value, dict):
        return _shrink(value, width)
    if value is None or isinstance(value, bool):
        return value
    if name in WIDTHS and isinstance(value, int):
        return width
    if name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        return 0
    if name not in SIZES or (isinstance(value, int) and isinstance(SIZES[name], list)):
        return value
    new = copy.deepcopy(SIZES[name])
    if isinstance(value, (list, tuple)) and isinstance(new, int):
        return [new] * len(value)
    return new


def _kinds(listed: list[Any]) -> list[Any]:
    """As many as there are layers, with each kind among them and the last one last."""
    kinds = list(dict.fromkeys(listed))[:LAYERS]
    filled = [kinds[i % len(kinds)] for i in range(LAYERS)]
    return [*filled[:-1], listed[-1]]


def _rope(rope: dict[str, Any], head: int) -> dict[str, Any]:
    """Sections of M-RoPE that add up to half a head, in the same shares."""
    inner: dict[str, Any] = {
        name: _rope(value, head) if isinstance(value, dict) else value for name, value in rope.items()
    }
    sections = inner.get("mrope_section")
    if sections:
        half = int(head * inner.get("partial_rotary_factor", 1.0)) // 2
        first = [max(1, section * half // sum(sections)) for section in sections[:-1]]
        inner["mrope_section"] = [*first, half - sum(first)]
    return inner


def _sections(text: dict[str, Any]) -> dict[str, Any]:
    """The rope parameters of a language model with M-RoPE, whose sections stock code would take for those of large heads."""
    rope = dict(text.get("rope_parameters") or {"rope_type": "default", "rope_theta": 10_000.0})
    plain = not any(isinstance(value, dict) for value in rope.values())
    return _rope(rope | {"mrope_section": rope.get("mrope_section") or [2, 3, 3]}, HEAD) if plain else rope


def model_of(config: Any) -> PreTrainedModel:
    """A model with random weights that are large enough to tell everything from nothing.

    Raises:
        UnsupportedModelError: it cannot be built, or it is not tiny.
    """
    import transformers

    cls = getattr(transformers, CLASSES[config.model_type])
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in cls(config).parameters())
        if size > LARGEST:
            raise UnsupportedModelError(
                f"the smallest {config.model_type!r} that the rules make has {size:,} parameters: give a config or a "
                "folder of a small one"
            )
        torch.manual_seed(0)
        model: PreTrainedModel = cls(config).eval()
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever a config class or a model says of sizes that do not fit together
        raise UnsupportedModelError(
            f"no tiny {config.model_type!r} can be built by rules ({type(error).__name__}: {str(error)[:200]}): give a config "
            "or a folder of a small one"
        ) from error
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn_like(parameter))
    return model
