"""What a forward of the language model leaves in its trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from foveate.models.family import Decoder
from foveate.runtime.cache import CompactMixin, KVIndex, cache_among, entry_of, window_of
from foveate.runtime.context import Context, DecoderPass
from foveate.runtime.hooks import by_name, first_argument
from foveate.runtime.shared import rows_of
from foveate.runtime.taken import Taken
from foveate.runtime.trace import LayerTrace


def note_of(
    call: DecoderPass, rows: int, keys: KVIndex | None, entry: Any, taken: Taken | None = None, lent: int = 0
) -> LayerTrace:
    """Return the note of one layer of a forward: its rows, the ``keys`` that it sees (None: all), what it has ``taken`` of
    another layer, and how many visual tokens that are set aside have ``lent`` it keys and values."""
    full = call.length + (call.past if entry is None else min(call.past, window_of(entry)))
    n_keys = full if keys is None else keys.length
    if isinstance(entry, CompactMixin) and entry.visible is not None:
        n_keys = entry.visible.index.shape[1]
    visual = None if call.layout is None else len(call.layout.tokens)
    note = LayerTrace(call.batch, rows, n_keys, call.rows or call.length, full, visual, lent=lent)
    if call.members is not None:
        note.members = call.members.outer.width
    if taken is not None:
        note.reuse, note.reused = taken.reuse, taken.tokens
    return note


def log_stock(call: DecoderPass, entries: Sequence[Any]) -> None:
    """Note the layers of a forward in which all are as in the stock model, by their cache entries."""
    windows, known = [window_of(entry) for entry in entries], dict[int, LayerTrace]()
    for window, entry in zip(windows, entries):
        if window not in known:
            known[window] = note_of(call, call.length, None, entry)
    log_of(call).extend([known[window] for window in windows])


def log_called(
    context: Context,
    spec: Decoder,
    i: int,
    source: int,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Note layer ``i`` of a model that holds every token, where only the call tells how many rows there are.

    Args:
        source: the layer whose keys and values it attends to.
    """
    call = context.decoder
    if call is None:
        return
    args, kwargs = by_name(layer, args, kwargs)
    if source != i:
        call.rows = rows_of(spec, kwargs)
    entry = entry_of(cache_among(kwargs.values()), source) if call.past else None
    log_of(call).append(note_of(call, first_argument(args, kwargs, "hidden_states").shape[1], None, entry))


def log_of(call: DecoderPass) -> list[LayerTrace]:
    """Return where the layers of a forward are noted."""
    return call.trace.decode if call.past and call.layout is None else call.trace.prefill
