"""Queries of an attention."""

from __future__ import annotations

from foveate.runtime.signals.kinds.keys import Keys


class Queries(Keys):
    """Queries ``(N, H, d)`` of an attention, at sites inside the vision tower; ``of="cls"``: ``(S, H, d)``. See `Keys`."""

    name = "queries"
    places = frozenset({"tower"})
    of = ("visual", "cls")
    state = "queries"
