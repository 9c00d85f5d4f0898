"""Values of an attention."""

from __future__ import annotations

from foveate.runtime.signals.kinds.keys import Keys


class Values(Keys):
    """Values ``(N, H, d)`` of an attention, as `Keys` in all else."""

    name = "values"
    state = "values"
