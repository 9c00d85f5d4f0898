"""Attention of several text tokens in the layer to come."""

from __future__ import annotations

from foveate.runtime.signals.kind import Asker, Need
from foveate.runtime.signals.kinds.text_rows import TextRows
from foveate.signal import Signal


class NextRows(TextRows):
    """Attention ``(N, R)`` that each text token of the question, or with ``rows="text"`` each text token, would pay to a token
    in the layer before which the site is: `text_rows` in shape, made as `next_row` is, and as costly.
    """

    name = "next_rows"
    places = frozenset({"decoder"})
    layered = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"ahead"})

    @classmethod
    def usual_layer(cls, signal: Signal, by: Asker) -> int:
        return by.site.layer
