"""RLT: before the vision tower, drop the patches of a video that are as they were a frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Paper
from foveate.methods.evs import EVS
from foveate.ops.predict import apart
from foveate.schedule import check_within
from foveate.signal import Signal
from foveate.site import Place
from foveate.tokens import Tokens


@dataclass(frozen=True)
class RLT(EVS):
    """Before the vision tower drop the patches of a video whose pixels have hardly changed since the frame before.

    From the paper: a patch (of two frames, where the tower embeds two as one) is compared in pixels with the one at its place
    in the frames before; where the mean absolute difference is no more than 0.1 it is a repetition and never embedded, so
    that a run of equal patches is one token; the first frame stays. Ours: a transformer that is trained with it is also told
    how long each run was, and these models cannot be: survivors keep their places in time, and that is all; all pixels of both
    frames are compared (the authors' code: the first frame of the earlier patch with the last of the later); the first vision
    block is the first that misses them; ``keep`` ranks the patches of a whole video by how much they have changed, and thins
    the first frame as `EVS` does. An image is a video of one frame, and stays whole without ``keep``.

    Attributes:
        threshold: mean difference of pixels, as the processor has scaled them, from which on a patch stays; by default 0.1.
    """

    threshold: float | None = None

    at: ClassVar[Place] = "tower"
    signals: ClassVar[tuple[Signal | str, ...]] = ("patches",)
    usual_threshold: ClassVar[float | None] = 0.1
    paper: ClassVar[Paper] = Paper(
        "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization",
        "NeurIPS",
        2024,
        "2411.05222",
        "rccchoudhury/rlt",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("a difference", float("inf"), threshold=self.threshold)

    def changed(self, tokens: Tokens, before: Tensor) -> Tensor:
        return apart(tokens.signal("patches"), torch.arange(len(tokens), device=before.device), before, "mae")
