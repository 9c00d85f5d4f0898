"""What a vision tower leaves for sites of the language model: hidden states of blocks, and attention that was paid in them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from foveate.runtime.context import TowerPass
from foveate.runtime.images import units
from foveate.runtime.layout import starts
from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Kind
from foveate.runtime.signals.past import Wanted


def left_by_tower(
    call: TowerPass, asked: Wanted, join: Callable[[Kind, Tensor], Tensor] | None
) -> dict[Hashable, Tensor]:
    """Return ``(cells, ...)`` by name, each token at its cell of the whole grid.

    Args:
        asked: what sites of the language model want of the tower.
        join: makes a signal of all heads, where a process has some of them.
    """
    layout, found = call.layout, dict[Hashable, Tensor]()
    if not asked.tower:
        return found
    assert layout is not None, "as the output has left it"
    tokens = layout.tokens
    cell = starts(tokens.spans, tokens.index.device)[tokens.segment] + tokens.index
    cell = cell if call.now.cells is None else call.now.cells.to(cell.device)[cell]
    n = units(call.full.grid)
    here = Presence(layout, None, call.seen, call.trace, join=join)
    values: dict[Hashable, Tensor] = {block: layout.pick(call.seen.entered[block]) for block in asked.blocks}
    values |= {name: here.heard_in_tower(kind) for name, kind in asked.paid.items()}
    for name, x in values.items():
        found[name] = x.new_zeros(n, *x.shape[1:]).index_copy_(0, cell.to(x.device), x)
    here.note_cost()
    return found
