"""Hidden states of the text."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import CHANNELS, Draw, Kind, Need


class Text(Kind):
    """Hidden states ``(M, C)`` of the text tokens as they are here, sample after sample (`Tokens.text_counts` each).

    The same as ``Signal("hidden", of="text")``, which may be of an earlier layer. It costs a copy.
    """

    name = "text"
    places = frozenset({"lm_entry", "decoder"})
    layered = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def read(self, here: Presence) -> Tensor:
        return here.text.packed(here.hidden)

    def made_up(self, draw: Draw) -> Tensor:
        return draw(CHANNELS)
