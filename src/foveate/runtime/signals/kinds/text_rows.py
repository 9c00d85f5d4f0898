"""Attention of several text tokens."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Draw, Kind, Slots
from foveate.runtime.signals.reading import Reading


class TextRows(Kind):
    """Attention ``(N, R)`` that each text token of the sample's question pays to a token (head mean; 0 where it has fewer).

    The question is what comes after the last visual token; ``rows="text"`` is all text tokens of the sample. ``text_place``
    says which column is which. ``heads=True``: ``(N, H, R)``. Each row of a layer costs ``H * K * d`` products.
    """

    name = "text_rows"
    places = frozenset({"decoder", "cache"})
    rows = ("question", "text")
    heads = True

    def ask(self, reading: Reading, slots: Slots) -> None:
        reading.queries[self.queries] = slots(self.queries)
        if self.signal.heads:
            reading.apart.add(self.queries)

    def read(self, here: Presence) -> Tensor:
        rows = here.own_rows(here.reading(self), self.queries)  # (N, R, H or 1)
        return rows.transpose(1, 2) if self.signal.heads else rows.mean(-1)

    def made_up(self, draw: Draw) -> Tensor:
        return draw(1, 1) if self.signal.heads else draw(1)
