"""Attention of CLS tokens."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Asker, Draw, Kind, Need, Slots
from foveate.runtime.signals.reading import Reading
from foveate.signal import Signal


class ClsRow(Kind):
    """Attention ``(N, H)`` that the CLS token of a token's image pays to it. A row costs ``H * K * d`` products.

    ``at="tower"``: of a vision block, by default the last one, at a site of the language model.
    """

    name = "cls_row"
    places = frozenset({"tower", "tower_output"})
    outlives = True
    in_parts = "heads"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"tower"}) if self.signal.at else super().needs

    @classmethod
    def usual_layer(cls, signal: Signal, by: Asker) -> int:
        return by.host.blocks - 1 if signal.at else by.last

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        super().check(signal, by)
        if not by.host.has_cls:
            raise by.refuse(signal, f"the tower of {by.host.family!r} has no CLS token")

    def ask(self, reading: Reading, slots: Slots) -> None:
        reading.queries["cls"] = slots("cls")
        reading.apart.add("cls")

    def read(self, here: Presence) -> Tensor:
        return here.of_tower(self) if self.signal.at else self.read_in_tower(here)

    def read_in_tower(self, here: Presence) -> Tensor:
        return here.own_rows(here.reading(self), "cls")[:, 0]

    def made_up(self, draw: Draw) -> Tensor:
        return draw(1)
