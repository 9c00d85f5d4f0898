"""Stride: evenly spaced tokens, the cheapest reduction there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.method import Host, Site
from foveate.ops import select
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule, Spelling
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class Stride(DecoderPruner):
    """Keep every ``1/ratio``-th token of every span, in raster order, before each of ``layers``.

    A control, not a paper: what uniform subsampling at the same budget would do.

    Attributes:
        layers: decoder layers before which tokens leave; by default 0 alone.
        ratio: share of the tokens present that survives at each of them; by default 0.5.
        schedule: in place of both.
    """

    layers: tuple[int, ...] | None = None
    ratio: float | None = None
    schedule: Spelling | None = None

    control: ClassVar[bool] = True

    def usual(self, host: Host) -> Schedule:
        return Schedule(((0, 0.5),))

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site)
        return Reduction(select.stride(tokens.counts, counts, tokens.index.device), counts)
