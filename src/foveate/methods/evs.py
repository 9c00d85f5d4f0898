"""EVS: of a video stay its first frame and the tokens that change most from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.method import Paper, Site
from foveate.ops import frames, select
from foveate.pruners import EntryPruner
from foveate.tokens import Tokens

_MOST = 1e3  # more than anything changes


@dataclass(frozen=True)
class EVS(EntryPruner):
    """Where image and text meet, keep a video's first frame, and of the others the tokens that differ most from the one before.

    From the paper: tokens are compared with those at the same place of the frame before; what has not changed is redundant;
    positions stay what they were. From NVIDIA's code in vLLM: 1 minus the cosine of merged features; all frames of a video
    share one budget, which their number and size say alone, so one frame may keep more than another; the first frame stays, and
    the budget is no less than it. Ours: a quarter of the tokens by default; where ``keep`` is too little for a first frame it
    is thinned evenly, and so is an image, which is a video of one frame; a place that another method has emptied in the frame
    before counts as changed. (vLLM serves it by itself, as ``--video-pruning-rate``; here it is refused, as frames share a
    ranking.)
    """

    usual: ClassVar[float] = 0.25
    pooled: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
        "arXiv",
        2025,
        "2510.14624",
    )

    @property
    def temporal(self) -> bool:
        return True

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        counts, spans = tokens.counts, tokens.spans
        first, before, spaced = [False] * len(counts), [-1] * len(counts), [0] * len(counts)
        for clip, kept in zip(spans.clips, tokens.pool_budget(site)):
            first[clip[0]], spaced[clip[0]] = True, min(kept, counts[clip[0]])
            for earlier, span in zip(clip, clip[1:]):
                before[span] = earlier
        other = frames.same_cell(tokens.index, counts, spans.sizes, before)
        changed = self.changed(tokens, other).clamp(max=_MOST)
        firsts = torch.tensor(first).to(changed.device, non_blocking=True)[tokens.segment]
        changed = torch.where(firsts, 2 * _MOST, changed)
        return changed.index_fill(0, select.stride(counts, spaced, changed.device), 4 * _MOST)

    def changed(self, tokens: Tokens, before: Tensor) -> Tensor:
        """Tell how much each token differs from the one at its place in the frame before, ``before (N,)``; ``N``: none."""
        return 1 - frames.cosine_with(tokens.hidden, before, missing=-1.0)
