"""Queries of an attention."""

from __future__ import annotations

from foveate.runtime.signals.kinds.keys import Keys


class Queries(Keys):
    """Queries ``(N, H, d)`` of an attention in the vision tower, as `Keys` in all else: ``of="cls"`` is ``(S, H, d)``."""

    name = "queries"
    places = frozenset({"tower", "tower_output"})
    of = ("visual", "cls")
    state = "queries"
