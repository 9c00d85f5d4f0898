"""Rotary tables of the tokens."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Asker, Draw, Kind, Need
from foveate.signal import Signal


class Rope(Kind):
    """Rotary tables ``(N, 2, d)`` of the tokens, cosines and sines, with which the coming layer turns their queries and keys.

    ``of="text"``: ``(M, 2, d)`` of the text tokens. Stock code may count padding on the left: what a method makes of angles is
    the same in a batch if they are those from another token of the sample on. It costs a copy of the tokens' rows.
    """

    name = "rope"
    places = frozenset({"lm_entry", "decoder"})
    layered = False
    of = ("visual", "text")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        super().check(signal, by)
        if "position_embeddings" not in by.family.decoder.layer_args:
            raise by.refuse(signal, f"the layers of {by.host.family!r} are given no rotary tables")
        if by.site.part:
            raise by.refuse(signal, "they are given to whole layers: ask before a layer")
        if by.positions != "keep":
            raise by.refuse(signal, f'with positions="{by.positions}" they are known only once the site has answered')

    def read(self, here: Presence) -> Tensor:
        return here.rotary(of_text=self.signal.of == "text")

    def made_up(self, draw: Draw) -> Tensor:
        return draw(2, 8)
