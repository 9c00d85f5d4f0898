"""LUVC: merge in the vision tower, then filter tokens out in the language model until its last layer has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.method import Method, Paper
from foveate.methods.oim import OIM
from foveate.methods.spu import SPU
from foveate.schedule import Spelling
from foveate.sums import Sum


@dataclass(frozen=True)
class LUVC(Sum):
    """The merger `OIM` in the vision tower and the pruner `SPU` in the language model.

    From what is published: the two parts, training-free, and that no visual token is left in the last layer; what each part
    takes from where, and what their options mean, is said there. Ours: the ratios, which halve the language model's FLOPs,
    one power on both for ``keep``, and the schedule: by default one cut before the first layer and one before the last, where
    the published pruning is gradual (``schedule="halving"`` is a cascade, as accurate here at the same cost). Their other
    options are those of a sum: ``OIM(shared=True) + SPU(mode="low_frequency_energy")``. What was tried: docs/methods/luvc.md.

    Attributes:
        merge: share of an image's tokens that the merger hands over; by default 0.8. Of 1, there is no merger.
        ratio: what the pruner leaves of these where its schedule says a half; by default 0.7.
        schedule: of the pruner; by default ``early``.
    """

    merge: float | None = None
    ratio: float | None = None
    schedule: Spelling | None = None

    paper: ClassVar[Paper] = SPU.paper

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # which check their options

    def parts(self) -> tuple[Method, ...]:
        # A schedule of pairs says itself how much.
        ratio = 0.7 if self.ratio is None and not isinstance(self.schedule, tuple) else self.ratio
        merger = OIM(keep=0.8 if self.merge is None else self.merge, positions=self.positions)
        pruner = SPU(schedule=self.schedule, ratio=ratio, positions=self.positions)
        return (pruner,) if self.merge == 1 else (merger, pruner)
