"""Attention of the last text token in the layer to come, as if nothing had a position."""

from __future__ import annotations

from foveate.runtime.signals.kind import Asker, Need
from foveate.runtime.signals.kinds.next_row import NextRow
from foveate.signal import Signal


class UnrotatedRow(NextRow):
    """Attention ``(N, H)`` that the last text token would pay to a token in the layer after the site, `next_row` without rotary
    embeddings.

    It costs that layer's projections of all tokens once more, and the row.
    """

    name = "unrotated_row"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"ahead", "unrotated"})

    @classmethod
    def check(cls, signal: Signal, by: Asker) -> None:
        super().check(signal, by)
        if "position_embeddings" not in by.family.decoder.layer_args:
            raise by.refuse(
                signal, f"the layers of {by.host.family!r} are given no rotary tables that could be left out"
            )
