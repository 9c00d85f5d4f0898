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
        if not isinstance(keys, Tensor) or keys.dim() != 4 or entry.values.shape[-2] == 0:
            continue
        n = entry.values.shape[-2]  # keys may be an earlier layer's, some of them or all
        key, value = keys.nbytes // max(keys.shape[-2], 1), entry.values.nbytes // n
        stock = min(entry.kv.total, window_of(entry)) if isinstance(entry, CompactMixin) else n
        visual = value if getattr(entry, "lent", None) is not None else key + value
        trace.kv.add(i, n, stock, keys.nbytes + entry.values.nbytes, key + value, visual, (key or value) + value)


def _only_grows(cache: Any) -> bool:
    """Tell whether a generated token adds to each entry, and none forgets."""
    entries = getattr(cache, "layers", [])
    return bool(entries) and all(_kind(entry) is DynamicLayer for entry in entries)


def _kind(entry: Any) -> type:
    return type(entry).__bases__[1] if isinstance(entry, CompactMixin) else type(entry)
