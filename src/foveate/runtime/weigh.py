"""What the KV cache holds after a forward, in bytes and tokens, and what the stock model's would."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.runtime.cache import CompactMixin, window_of
from foveate.runtime.trace import Trace


def weigh(trace: Trace, cache: Any) -> None:
    """Bytes held by the cache tensors, and what full-length ones would take."""
    held = full = 0
    trace.kv_layers, trace.kv_lengths, trace.full_kv_lengths, trace.kv_widths = [], [], [], []
    for i, entry in enumerate(getattr(cache, "layers", [])):
        keys = getattr(entry, "keys", None)
        if not isinstance(keys, Tensor) or keys.dim() != 4 or keys.shape[-2] == 0:
            continue
        size = keys.nbytes + entry.values.nbytes
        held += size
        if keys.shape[-1] == 0:  # an earlier layer's, which are as wide as its values
            size += entry.values.nbytes
        total = min(entry.kv.total, window_of(entry)) if isinstance(entry, CompactMixin) else keys.shape[-2]
        full += size // keys.shape[-2] * total
        trace.kv_layers.append(i)
        trace.kv_widths.append((keys.nbytes + entry.values.nbytes) / size)
        trace.kv_lengths.append(keys.shape[-2])
        trace.full_kv_lengths.append(total)
    trace.kv_bytes, trace.full_kv_bytes = held, full
