"""Attention of the last text token in the layer to come."""

from __future__ import annotations

from foveate.runtime.signals.kind import Asker, Need
from foveate.runtime.signals.kinds.last_row import LastRow
from foveate.signal import Signal


class NextRow(LastRow):
    """Attention ``(N, H)`` that the last text token would pay to a token in the layer after the site: that layer's own
    norm, projections and RoPE, on the tokens that are present.

    It costs that layer's projections of all tokens once more, and the row.
    """

    name = "next_row"
    places = frozenset({"decoder"})
    layered = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"ahead"})

    @classmethod
    def usual_layer(cls, signal: Signal, by: Asker) -> int:
        return by.site.layer
