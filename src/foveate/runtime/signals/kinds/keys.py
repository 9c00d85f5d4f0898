"""Keys of an attention."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Draw, Kind, Slots
from foveate.runtime.signals.reading import Reading


class Keys(Kind):
    """Keys ``(N, H, d)`` of an attention, as its kernel saw them (after RoPE); of a token of several patches side by side.

    ``of="text"``: ``(M, H, d)``; ``of="cls"``: ``(S, H, d)``. They cost memory from their layer to the site, and nothing else.
    """

    name = "keys"
    places = frozenset({"tower", "tower_output", "decoder", "decode", "cache"})
    of: ClassVar[tuple[str, ...]] = ("visual", "text", "cls")
    paged = "pieces"
    in_parts = "heads"
    #: the argument of the kernel
    state: ClassVar[str] = "keys"

    def ask(self, reading: Reading, slots: Slots) -> None:
        reading.states.add(self.state)

    def read(self, here: Presence) -> Tensor:
        reading = here.reading(self)
        if self.signal.of == "cls":
            return reading.first(self.state)
        rows = reading.state(self.state)
        return here.text.packed(rows) if self.signal.of == "text" else here.attended(rows, side_by_side=True)

    def made_up(self, draw: Draw) -> Tensor:
        return draw(1, 8)
