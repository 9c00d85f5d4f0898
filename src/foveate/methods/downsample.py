"""Downsample: a smaller image, the control that any compression of a big one has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.method import Host, Method, Site
from foveate.ops.segments import offsets
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True)
class Downsample(Method):
    """Resize every image so that about ``keep`` of its tokens are left, before the vision tower sees it.

    A control, not a paper; VTC-Bench (ACL 2026) finds it stronger than many methods. The grid is the largest one of the
    same aspect ratio (sides rounded down, at least 1) that has no more than ``keep`` of the tokens. Each token of the
    small grid takes the place of the original token at its centre; ``positions="native"`` numbers them as the stock model
    would number a smaller image.

    Attributes:
        keep: share of each image's tokens that the smaller image has at most.
    """

    keep: float = 0.5

    control: ClassVar[bool] = True

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site("pixels", keep=self.keep)]

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        scale = site.keep**0.5
        # The small addend keeps e.g. 0.25 -> 1/2 exact where the square root falls just short.
        shape = tuple(
            (max(1, int(height * scale + 1e-6)), max(1, int(width * scale + 1e-6)))
            for height, width in tokens.spans.shape
        )
        starts = offsets(tokens.counts)
        keep = [
            start + _centres(old[0], new[0])[:, None] * old[1] + _centres(old[1], new[1])[None, :]
            for start, old, new in zip(starts, tokens.spans.shape, shape)
        ]
        index = torch.cat([grid.flatten() for grid in keep]) if keep else torch.empty(0, dtype=torch.long)
        return Reduction(index.to(tokens.index.device), tuple(h * w for h, w in shape), shape=shape)


def _centres(old: int, new: int) -> torch.Tensor:
    """Old cell under the centre of each new cell: ``(new,)`` int64."""
    return (2 * torch.arange(new) + 1) * old // (2 * new)
