"""Selection from the near to the far: a few tokens at a time, those that differ, and of these first those close to others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.ops.segments import alike, padded_index, rows_of, to_padded

RISE = 0.1  # of the threshold, from one round to the next


def outward(
    features: Tensor,
    place: Tensor,
    counts: Sequence[int],
    k: Sequence[int],
    first: Tensor,
    threshold: float,
    step: int,
    far: float,
) -> Tensor:
    """Choose tokens of each segment that are unlike those chosen so far, near ones first, in rounds; asks the device.

    What a token has against it is its largest cosine with those chosen, times ``1 + far * d``, where ``d`` is how far away the
    nearest of them is. In a round the free tokens stand in the order of that, the least first; of ``step`` at a time those that
    have less than the threshold against them, by all that are chosen then, are chosen. In the next round the threshold is a
    tenth higher. Of those that are too many the ones with the least stay.

    Args:
        features: ``(N, C)``.
        place: ``(N, 2)`` where each token is, in units of the largest distance in its segment.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, at least as many as are chosen beforehand.
        first: packed indices, which are chosen beforehand, at least one of each segment that keeps any.
        threshold: of the first round.
        step: tokens that are looked at together, at least 1.
        far: from 0 on.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    chosen = torch.zeros(len(features), dtype=torch.bool, device=features.device).index_fill(0, first, True)
    for members in alike(counts):
        rows, few = rows_of(members, counts, features.device), [counts[s] for s in members]
        left = [k[s] for s in members]
        if sum(left):
            grow = _Grow(features[rows], place[rows].float(), few, left, chosen[rows], far)
            grow.run(threshold, step)
            chosen[rows] = grow.chosen.flatten()[padded_index(few, rows.device)]
    return torch.nonzero(chosen).flatten()


def outward_flops(counts: Sequence[int], k: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `outward` (2 per multiply-add)."""
    return sum(
        2 * len(members) * max(counts[s] for s in members) ** 2 * width
        for members in alike(counts)
        if any(k[s] for s in members)
    )


class _Grow:
    """Sets of tokens that grow, in segments of like lengths."""

    def __init__(
        self, features: Tensor, place: Tensor, counts: list[int], k: list[int], chosen: Tensor, far: float
    ) -> None:
        x = to_padded(normalize(features.detach().float(), dim=-1), counts)
        self.cosine = x @ x.transpose(1, 2)
        self.place, self.far = to_padded(place, counts), far
        self.chosen = to_padded(chosen, counts, False)
        self.exists = to_padded(torch.ones_like(chosen), counts, False)
        self.left = torch.tensor(k).to(place.device, non_blocking=True) - self.chosen.sum(1)
        self.like = x.new_full(self.chosen.shape, -torch.inf)
        self.near = torch.full_like(self.like, torch.inf)
        begun = self.chosen.long().argsort(dim=1, descending=True, stable=True)[:, : int(self.chosen.sum(1).max())]
        if begun.shape[1]:
            self._add(begun, self.chosen.gather(1, begun))

    def run(self, threshold: float, step: int) -> None:
        while bool((self.left > 0).any()):
            free = self.exists & ~self.chosen
            order = self._against().masked_fill(~free, torch.inf).argsort(dim=1, stable=True)
            for at in order.split(step, 1):
                able = free.gather(1, at)
                against = self._against().gather(1, at).masked_fill(~able, torch.inf)
                able &= against < threshold
                rank = against.masked_fill(~able, torch.inf).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
                able &= rank < self.left[:, None]
                if bool(able.any()):
                    self._add(at, able)
                    self.left -= able.sum(1)
                    self.chosen = self.chosen.scatter(1, at, able | self.chosen.gather(1, at))
            threshold += RISE

    def _against(self) -> Tensor:
        return self.like * (1 + self.far * self.near)

    def _add(self, at: Tensor, able: Tensor) -> None:
        """Note those of the tokens ``at (S, b)`` that are ``able`` as chosen."""
        segment = torch.arange(len(at), device=at.device)[:, None]
        cosine = self.cosine[segment, at].transpose(1, 2)
        away = torch.linalg.vector_norm(self.place[:, :, None] - self.place[segment, at][:, None], dim=-1)
        self.like = torch.maximum(self.like, cosine.masked_fill(~able[:, None], -torch.inf).amax(-1))
        self.near = torch.minimum(self.near, away.masked_fill(~able[:, None], torch.inf).amin(-1))
