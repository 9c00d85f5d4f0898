"""AIR with a small memory, in layers that a tiny model has, for all text after an image."""

from __future__ import annotations

from dataclasses import dataclass

import foveate
from foveate.site import Into


@dataclass(frozen=True)
class AIR(foveate.AIR):
    """What is remembered and injected is that of the published method."""

    layers: tuple[int, ...] | None = (3, 4, 5)
    outliers: int = 4
    window: int = 2
    into: Into = "text"
