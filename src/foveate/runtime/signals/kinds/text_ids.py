"""Token ids of the text."""

from __future__ import annotations

from torch import Tensor

from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import Draw, Kind, Need


class TextIds(Kind):
    """Token ids ``(M,)`` int64 of the text tokens, sample after sample (`Tokens.text_counts` each).

    It costs nothing to speak of. A call that brings embeddings in place of ids cannot give it.
    """

    name = "text_ids"
    places = frozenset({"lm_entry", "decoder"})
    layered = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def read(self, here: Presence) -> Tensor:
        return here.text.ids

    def made_up(self, draw: Draw) -> Tensor:
        return draw(1)[:, 0].long()
