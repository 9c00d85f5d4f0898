"""What the KV cache holds after a forward, in bytes and tokens, and what the stock model's would."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from foveate.runtime.cache import CompactMixin, window_of
from foveate.runtime.trace import Trace, Weight


def weigh(trace: Trace, cache: Any, batch: int, length: int) -> None:
    """Note the bytes that the cache tensors hold, and what full-length ones would take.

    A cache that only grows, as it does with nearly every generated token, is not measured again: it holds one more token.

    Args:
        batch, length: rows, and tokens of the full sequence that the cache now stands for.
    """
    if trace.kv.is_of(cache, batch, length - 1):
        trace.kv.grown += 1
        return
    trace.kv = Weight(weakref.ref(cache) if _only_grows(cache) else None, batch, length)
    for i, entry in enumerate(getattr(cache, "layers", [])):
        keys = getattr(entry, "keys", None)
        if not isinstance(keys, Tensor) or keys.dim() != 4 or keys.shape[-2] == 0:
            continue
        held = keys.nbytes + entry.values.nbytes
        full = (
            held if keys.shape[-1] else held + entry.values.nbytes
        )  # keys that are an earlier layer's: as wide as values
        stock = min(entry.kv.total, window_of(entry)) if isinstance(entry, CompactMixin) else keys.shape[-2]
        trace.kv.add(i, keys.shape[-2], stock, held // keys.shape[-2], full // keys.shape[-2])


def _only_grows(cache: Any) -> bool:
    """Tell whether a generated token adds to each entry, and none forgets."""
    entries = getattr(cache, "layers", [])
    return bool(entries) and all(_kind(entry) is DynamicLayer for entry in entries)


def _kind(entry: Any) -> type:
    return type(entry).__bases__[1] if isinstance(entry, CompactMixin) else type(entry)
