"""What a forward of the language model leaves in its trace."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.runtime.cache import CompactMixin, KVIndex, window_of
from foveate.runtime.context import DecoderPass
from foveate.runtime.taken import Taken
from foveate.runtime.trace import LayerTrace


def log_layer(
    call: DecoderPass, hidden: Tensor, keys: KVIndex | None, entry: Any, taken: Taken | None = None, lent: int = 0
) -> None:
    """Note one layer of a forward, whose attention sees ``keys`` (None: all), what it has ``taken`` from another layer, and how
    many visual tokens that are set aside have ``lent`` it keys and values."""
    full = call.length + (call.past if entry is None else min(call.past, window_of(entry)))
    n_keys = full if keys is None else keys.length
    if isinstance(entry, CompactMixin) and entry.visible is not None:
        n_keys = entry.visible.index.shape[1]
    log = call.trace.decode if call.past and call.layout is None else call.trace.prefill
    visual = None if call.layout is None else len(call.layout.tokens)
    trace = LayerTrace(call.batch, hidden.shape[1], n_keys, call.rows or call.length, full, visual, lent=lent)
    if call.members is not None:
        trace.members = call.members.outer.width
    if taken is not None:
        trace.reuse, trace.reused = taken.reuse, taken.tokens
    log.append(trace)
