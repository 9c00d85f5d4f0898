"""Decoder layers that carry a state from token to token in place of attention.

Such a layer sees its tokens in order and asks for no positions: leaving tokens out is all there is to a reduction, as long as
no padding stands between what the state knows and what follows, for padding enters the state, masked or not. Rows of a
prompt are padded where there is no state yet. Where rows of different lengths go on from a cache, each goes through alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from foveate.models.family import Decoder
from foveate.runtime.hooks import first_argument, replace_first

STATES = ("conv_states", "recurrent_states")


def attention_of(layer: nn.Module, spec: Decoder) -> nn.Module | None:
    """Return the attention of a decoder layer; None where it has a recurrent module instead."""
    if spec.recurrent and hasattr(layer, spec.recurrent):
        return None
    return layer.get_submodule(spec.attention)


def row_by_row(
    stock: Callable[..., Tensor], layer: int, lengths: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """A recurrent module on the last ``lengths[b]`` tokens of each row ``b`` alone, with its own part of the cache."""
    hidden: Tensor = first_argument(args, kwargs, "hidden_states")
    name, cache = next(((name, value) for name, value in kwargs.items() if isinstance(value, Cache)), ("", None))
    rows, states = [], []
    for row, n in enumerate(lengths):
        own = hidden[row : row + 1, hidden.shape[1] - n :]
        given: dict[str, Any] = {**kwargs, "attention_mask": None}
        if cache is not None:
            given[name] = _of_row(cache, layer, row)
            states.append(given[name].layers[layer])
        if n:
            own_args, given = replace_first(args, given, "hidden_states", own)
            own = stock(*own_args, **given)
        rows.append(nn.functional.pad(own, (0, 0, hidden.shape[1] - n, 0)))
    if cache is not None:
        for kind in STATES:
            for i, state in getattr(cache.layers[layer], kind).items():
                if state is not None:
                    state.copy_(torch.cat([getattr(entry, kind)[i] for entry in states]))
    return torch.cat(rows)


def _of_row(cache: Cache, layer: int, row: int) -> Cache:
    """The same cache, whose recurrent entry of ``layer`` is a copy of that of one row."""
    entry = copy.copy(cache.layers[layer])
    for name, value in vars(entry).items():
        if isinstance(value, dict):
            part = {i: x[row : row + 1].clone() if isinstance(x, Tensor) else x for i, x in value.items()}
            setattr(entry, name, part)
    alone = copy.copy(cache)
    alone.layers = [*cache.layers[:layer], entry, *cache.layers[layer + 1 :]]
    return alone
