"""Pixel values."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Asker, Draw, Kind, Need
from foveate.signal import Signal


class Patches(Kind):
    """Pixel values of a token's patches, ``(N, 3 * p * p)`` for one of ``p`` times ``p`` pixels, as the processor made them.
    Where the tower embeds two frames of a video as one token, they are of both.

    The frame before is there to compare with, where the tower knows of videos (`Tokens.spans`). A `pixels` site resizes images
    by them; tokens are dropped by them before vision block 0, where nothing but the embedding of patches has run. They cost a
    copy.
    """

    name = "patches"
    places = frozenset({"pixels", "tower"})
    layered = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"pixels"})

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        super().check(signal, by)
        if by.site.unit == "patch" and by.family.tower.unit(by.config) > 1:
            raise by.refuse(signal, 'they are of whole tokens: leave unit="patch" out')

    def read(self, here: Presence) -> Tensor:
        return here.pixels()

    def made_up(self, draw: Draw) -> Tensor:
        return draw(12)
