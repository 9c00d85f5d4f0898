"""LUVC: merge in the vision tower, then filter tokens out in the language model until its last layer has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.method import Host, Method, Site
from foveate.methods.oim import OIM
from foveate.methods.spu import SPU
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class LUVC(OIM, SPU):
    """The merger `OIM` in the vision tower and the pruner `SPU` in the language model.

    From what is published: the two parts, training-free, and that no visual token is left in the last layer; what each part
    takes from where, and what their options mean, is said there. Ours: the ratios, which halve the language model's FLOPs,
    one dial for both, and the schedule: by default one cut before the first layer and one before the last, where the
    published pruning is gradual (``schedule="halving"`` is a cascade, as accurate here at the same cost). ``merge=1`` is LUVC
    without the merger, which goes together with other tower methods. What was tried: docs/methods/luvc.md.
    """

    keep: float = 0.7
    merge: float | None = 0.8

    def sites(self, host: Host) -> Sequence[Site]:
        merger = [] if self.merge == 1 else OIM.sites(self, host)
        return [*merger, *SPU.sites(self, host)]

    def with_share(self, share: float, host: Host) -> Method:
        """The pruner at that share, the merger at its two-thirds power (0.7 and 0.79, or 0.5 and 0.63)."""
        merger = self if self.merge == 1 else OIM.with_share(self, share ** (2 / 3), host)
        assert isinstance(merger, LUVC)
        return SPU.with_share(merger, share, host)

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        return OIM.reduce(self, tokens, site) if site.at == "tower" else Method.reduce(self, tokens, site)
