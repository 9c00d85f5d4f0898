"""Downsample: a smaller image, the control that any compression of a big one has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.method import Site
from foveate.ops.segments import offsets
from foveate.pruners import EntryPruner
from foveate.site import Place
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class Downsample(EntryPruner):
    """Resize every image so that about ``keep`` of its tokens are left, before the vision tower sees it.

    A control, not a paper; VTC-Bench (ACL 2026) finds it stronger than many methods. The grid has about the
    same aspect ratio: the height is rounded, and the width is what then comes nearest to ``keep`` of the tokens, within half
    a column. Each token of the small grid takes the place of the original token at its centre; ``positions="native"`` numbers
    them as the stock model would number a smaller image.
    """

    control: ClassVar[bool] = True
    at: ClassVar[Place] = "pixels"

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        shape = tuple(_smaller(height, width, site.keep) for height, width in tokens.spans.shape)
        starts = offsets(tokens.counts)
        keep = [
            start + _centres(old[0], new[0])[:, None] * old[1] + _centres(old[1], new[1])[None, :]
            for start, old, new in zip(starts, tokens.spans.shape, shape)
        ]
        index = torch.cat([grid.flatten() for grid in keep]) if keep else torch.empty(0, dtype=torch.long)
        return Reduction(index.to(tokens.index.device, non_blocking=True), tuple(h * w for h, w in shape), shape=shape)


def _smaller(height: int, width: int, keep: float) -> tuple[int, int]:
    """The grid of about the same aspect ratio whose tokens are the nearest to that share: halves up, at least one."""
    new = min(height, max(1, int(height * keep**0.5 + 0.5 + 1e-6)))
    return new, min(width, max(1, int(keep * height * width / new + 0.5 + 1e-6)))


def _centres(old: int, new: int) -> torch.Tensor:
    """Old cell under the centre of each new cell: ``(new,)`` int64."""
    return (2 * torch.arange(new) + 1) * old // (2 * new)
