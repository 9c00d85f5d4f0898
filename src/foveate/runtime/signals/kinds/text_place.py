"""Which text token each column of `text_rows` is."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Draw, Kind, Need


class TextPlace(Kind):
    """Which of the packed text tokens (`text`) each column of ``text_rows`` is: ``(B, R)`` int64, a row for every sample, -1
    where it has fewer.

    ``tokens.spans.sample`` is the sample of a span. It takes ``rows`` as `text_rows` does, and costs nothing to speak of.
    """

    name = "text_place"
    places = frozenset({"decoder", "lm_entry"})
    layered = False
    rows = ("question", "text")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def read(self, here: Presence) -> Tensor:
        return here.text.place(self.queries)

    def made_up(self, draw: Draw) -> Tensor:
        return draw(1).long()
