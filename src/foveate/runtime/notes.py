"""What a forward of the language model leaves in its trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from foveate.runtime.cache import CompactMixin, KVIndex, window_of
from foveate.runtime.context import DecoderPass
from foveate.runtime.taken import Taken
from foveate.runtime.trace import LayerTrace


def log_layer(
    call: DecoderPass,
    rows: int,
    keys: KVIndex | None,
    entry: Any,
    taken: Taken | None = None,
    lent: int = 0,
    log: list[LayerTrace] | None = None,
) -> LayerTrace:
    """Note one layer of a forward: its rows, the ``keys`` that it sees (None: all), what it has ``taken`` of another layer, and
    how many visual tokens that are set aside have ``lent`` it keys and values; in a ``log`` of its own, where it has one."""
    full = call.length + (call.past if entry is None else min(call.past, window_of(entry)))
    n_keys = full if keys is None else keys.length
    if isinstance(entry, CompactMixin) and entry.visible is not None:
        n_keys = entry.visible.index.shape[1]
    visual = None if call.layout is None else len(call.layout.tokens)
    trace = LayerTrace(call.batch, rows, n_keys, call.rows or call.length, full, visual, lent=lent)
    if call.members is not None:
        trace.members = call.members.outer.width
    if taken is not None:
        trace.reuse, trace.reused = taken.reuse, taken.tokens
    (_log_of(call) if log is None else log).append(trace)
    return trace


def log_layers(call: DecoderPass, rows: int, layers: Iterable[tuple[KVIndex | None, Any]]) -> None:
    """Note all layers of a forward, of each what its attention sees and its cache entry; those that are alike share a note."""
    log, known = _log_of(call), dict[int, LayerTrace]()
    for keys, entry in layers:
        kind = window_of(entry) if keys is None else -id(keys)  # (entries that slide and others have no keys in common)
        if kind in known:
            log.append(known[kind])
        else:
            known[kind] = log_layer(call, rows, keys, entry)


def _log_of(call: DecoderPass) -> list[LayerTrace]:
    return call.trace.decode if call.past and call.layout is None else call.trace.prefill
