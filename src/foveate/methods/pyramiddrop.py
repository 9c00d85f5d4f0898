"""PyramidDrop: the deeper the layer, the fewer image tokens, as the question ranks them on its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.method import Host, Paper, Site
from foveate.pruners import DecoderPruner
from foveate.schedule import Schedule
from foveate.signal import Signal
from foveate.tokens import Tokens


@dataclass(frozen=True)
class PyramidDrop(DecoderPruner):
    """At the end of each stage of the language model, keep the half of the image tokens that the instruction looks at.

    From the paper: four stages of equal depth, and half of the tokens left after each; tokens are ranked by the attention that
    the last instruction token pays them with the norm, projections and RoPE of the coming layer, mean over heads. From the
    authors' code: after 8, 16 and 24 of 32 layers; position ids are counted anew after each drop, which is
    ``positions="renumber"`` here. Ours: they stay what they were by default; the last text token asks (where the answer is part
    of the prompt, as in training, the authors take the words before it); every image has a budget of its own; nearest counts.

    Attributes:
        layers: decoder layers before which tokens leave; by default at 1/4, 1/2 and 3/4 of the depth.
        ratio: share of the tokens present that survives at each of them; by default 0.5.
    """

    layers: tuple[int, ...] | None = None
    ratio: float | None = None

    signals: ClassVar[tuple[Signal | str, ...]] = ("next_row",)
    paper: ClassVar[Paper] = Paper(
        "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
        "CVPR",
        2025,
        "2410.17247",
        "Cooperx521/PyramidDrop",
    )

    def usual(self, host: Host) -> Schedule:
        return Schedule.scaled((8, 16, 24), (0.5, 0.5, 0.5), 32, host.layers)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return tokens.next_row.mean(-1)
