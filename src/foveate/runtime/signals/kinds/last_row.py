"""Attention of the last text token."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Draw, Kind, Paged, Slots
from foveate.runtime.signals.reading import Reading


class LastRow(Kind):
    """Attention ``(N, H)`` that the last text token of the token's sample pays to it (at a decode site: the newest token).

    A row of a layer costs ``H * K * d`` products.
    """

    name = "last_row"
    places = frozenset({"decoder", "decode", "cache"})
    paged: ClassVar[Paged] = "whole"
    in_parts = "heads"

    def ask(self, reading: Reading, slots: Slots) -> None:
        reading.queries["last"] = slots("last")
        reading.apart.add("last")

    def read(self, here: Presence) -> Tensor:
        return here.own_rows(here.reading(self), "last")[:, 0]

    def made_up(self, draw: Draw) -> Tensor:
        return draw(1)
