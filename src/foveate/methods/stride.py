"""Stride: evenly spaced tokens, the cheapest reduction there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from foveate.errors import ConfigError
from foveate.method import Host, Method, Site
from foveate.ops import select
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class Stride(Method):
    """Keep every ``1/keep``-th token of every span, in raster order, before each of ``layers``.

    A control, not a paper: what uniform subsampling at the same budget would do. ``keep`` applies again at every layer; the
    counts are those of the whole schedule, rounded once.

    Attributes:
        keep: share of the tokens present that survives each time.
        layers: decoder layers before which tokens leave.
    """

    keep: float = 0.5
    layers: tuple[int, ...] = (0,)

    control: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers:
            raise ConfigError("Stride needs at least one layer")

    def sites(self, host: Host) -> Sequence[Site]:
        return Site.cascade("decoder", [(layer, self.keep**cut) for cut, layer in enumerate(self.layers, 1)])

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site)
        return Reduction(select.stride(tokens.counts, counts, tokens.index.device), counts)
