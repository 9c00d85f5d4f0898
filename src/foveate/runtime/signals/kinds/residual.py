"""What a layer has added to the hidden states."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import CHANNELS, Asker, Draw, Kind, Need
from foveate.signal import Signal


class Residual(Kind):
    """What a layer (between attention and FFN: its attention) has added to hidden states ``(N, C)``; of the text ``(M, C)``.

    It costs the memory of the layer's input, and of an earlier layer that of its output.
    """

    name = "residual"
    places = frozenset({"tower", "tower_output", "decoder"})
    of = ("visual", "text")
    paged = "pieces"

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        super().check(signal, by)
        if by.site.part:
            raise by.refuse(signal, f"{by.site} cannot give residual, which is of a whole layer: ask before a layer")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"entered"}) if self.layer == self.last else frozenset({"entered", "left"})

    def read(self, here: Presence) -> Tensor:
        before = here.past.entered[self.layer]
        after = here.hidden if self.layer == self.last else here.past.left[self.layer]
        own = here.text.packed if self.signal.of == "text" else here.pick
        return own(after) - own(before)

    def made_up(self, draw: Draw) -> Tensor:
        return draw(CHANNELS)
