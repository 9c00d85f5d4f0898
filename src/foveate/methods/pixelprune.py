"""PixelPrune: before the vision tower, drop the patches that their neighbours foretell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.method import Paper, Site
from foveate.ops.predict import Metric, surprise
from foveate.pruners import EntryPruner
from foveate.schedule import check_within
from foveate.signal import Signal
from foveate.site import Place
from foveate.tokens import Tokens


@dataclass(frozen=True)
class PixelPrune(EntryPruner):
    """Before the vision tower drop the tokens whose pixels are those that the patches to the left and above foretell.

    From the paper: a token's patch of pixels is predicted from those before it, as lossless codecs predict pixels, and dropped
    if the prediction is exact (``threshold=0``) or off by no more than a threshold, so that the vision tower and the language
    model are both spared; of documents and screens 22 to 71 % of the patches are unlike all others. From the authors' code:
    the left patch predicts, but the upper one where the left is as the upper left and the upper is not; off is the largest
    difference of two pixels; with a threshold, what was dropped counts as what has predicted it, so that errors do not add up.
    Ours: the first vision block is the first that misses them (the embedding of patches is cheap); pixels are as the processor
    has scaled them, and a difference of exactly the threshold stays; each frame of a video is an image; ``keep`` ranks by how
    far off exact predictions are, the earlier of equal ones first. A photograph, without equal patches, stays whole.

    Attributes:
        threshold: the difference from which on a token stays; by default 0, and all that differ at all stay.
        metric: of two patches the ``max`` difference of two values, their mean one (``mae``), or the root of the mean square.
    """

    threshold: float | None = None
    metric: Metric = "max"

    at: ClassVar[Place] = "tower"
    signals: ClassVar[tuple[Signal | str, ...]] = ("patches",)
    usual_threshold: ClassVar[float | None] = 0.0
    paper: ClassVar[Paper] = Paper(
        "PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding",
        "arXiv",
        2026,
        "2604.00886",
        "OPPO-Mente-Lab/PixelPrune",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a difference", float("inf"), threshold=self.threshold)

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        cut = self.cut_at(site) or 0.0
        off = surprise(tokens.signal("patches"), tokens.index, tokens.counts, tokens.spans.shape, self.metric, cut)
        return off.masked_fill(off == 0, -1.0)  # what is the same never reaches a threshold
