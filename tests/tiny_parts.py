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
    """The first module behind the tower that works on one token each."""
    spec = family_of(model.config).tower
    return base(model).get_submodule((*spec.neck, spec.output)[0])


def blocks(model: Any) -> list[Any]:
    """Its blocks that reach the language model."""
    return list(tower(model).get_submodule(family_of(model.config).tower.blocks))[:BLOCKS]


def end(model: Any) -> Any:
    """What sees the patches that the last of these blocks puts out: a module that puts them together, or the projector."""
    spec = family_of(model.config).tower
    if spec.pooler:
        return tower(model).get_submodule(spec.pooler)
    return base(model).get_submodule((*spec.neck, spec.output)[0].partition(".patch_merger.")[0])


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
