"""Where things are in a tiny model, and what it makes of its inputs; used through `tiny`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from tiny_shared import BLOCKS
from torch import Tensor, nn

from foveate.models import family_of


def base(model: Any) -> Any:
    """What joins vision and text."""
    return model.get_submodule(family_of(model.config).base)


def lm(model: Any) -> Any:
    """The language model."""
    return base(model).get_submodule(family_of(model.config).decoder.module)


def marked(model: Any, batch: dict[str, Tensor], function: str = "get_image_features") -> Any:
    """What stock code is given of the images of a prompt: at full length, with marks where tokens have left."""
    inner, found = base(model), []
    stock, own = getattr(inner, function), vars(inner).get(function)

    def listen(*args: Any, **kwargs: Any) -> Any:
        found.append(stock(*args, **kwargs))
        return found[-1]

    setattr(inner, function, listen)
    try:
        model(**batch)
    finally:
        delattr(inner, function) if own is None else setattr(inner, function, own)
    return found[0]


def tower(model: Any) -> Any:
    """The vision tower."""
    return base(model).get_submodule(family_of(model.config).tower.module)


def projector(model: Any) -> Any:
    """The linear layers between a padded tower and the language model."""
    inner = base(model)
    if hasattr(inner, "embed_vision"):
        return inner.embed_vision
    if hasattr(inner, "connector"):
        return inner.connector.modality_projection
    if hasattr(inner, "visual_embeddings_table"):
        return inner.vision_tower.head_linear
    return inner.merger if hasattr(inner, "merger") else inner.multi_modal_projector


def blocks(model: Any) -> list[Any]:
    """Its blocks that reach the language model."""
    return list(tower(model).get_submodule(family_of(model.config).tower.blocks))[:BLOCKS]


def end(model: Any) -> Any:
    """What sees the patches that the last of these blocks puts out."""
    if hasattr(tower(model), "pooler") and hasattr(base(model), "embed_vision"):
        return tower(model).pooler
    if not hasattr(base(model), "visual"):
        return projector(model)
    return getattr(tower(model), "post_layernorm", tower(model).merger)


def entries(cache: Any) -> list[Any]:
    """The cache entries that hold keys: those of the layers with attention."""
    return [entry for entry in cache.layers if getattr(entry, "keys", None) is not None]


def positions(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """``(3, B, L)`` position ids as stock code makes them of the grids."""
    of_grids = base(model).get_rope_index
    known = {name: batch[name] for name in inspect.signature(of_grids).parameters if name in batch}
    ids: Tensor = of_grids(**known)[0]
    return ids


def text_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """``(M, V)`` logits of every position that is not padding, without gradients."""
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]
