"""Which slots of a cache entry a step of decoding sees, where a decode site has chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.runtime.layout import take_rows
from foveate.runtime.masks import View


@dataclass(frozen=True, eq=False)
class Slots(View):
    """The slots of a cache entry that a step sees.

    Attributes:
        shape: ``(B, H, T)`` of its keys ``(B, H, T, d)``.
        rows: ``(B * H * P,)`` which of their rows ``(B * H * T, d)`` these are; if B is 1, ``(P,)`` of each head.
    """

    shape: tuple[int, int, int]
    rows: Tensor

    @classmethod
    def of(cls, view: View, heads: int, length: int) -> Slots:
        """Return the slots of ``view`` in an entry of so many ``heads`` that will hold ``length`` tokens."""
        batch = len(view.index)
        if batch == 1:
            return cls(view.index, view.valid, (1, heads, length), view.index[0])
        start = torch.arange(0, batch * heads * length, length, device=view.index.device).view(batch, heads, 1)
        return cls(view.index, view.valid, (batch, heads, length), (view.index[:, None] + start).flatten())

    def take(self, x: Tensor) -> Tensor:
        """Return their rows of ``x (B, H, T, d)``."""
        rows = self.rows if self.rows.device == x.device else self.rows.to(x.device)
        if self.shape[0] == 1:
            return x.index_select(2, rows)
        if x.shape[:3] != self.shape or not x.is_contiguous():
            return take_rows(x, self.index, 2)
        return x.view(-1, x.shape[3]).index_select(0, rows).view(*x.shape[:2], -1, x.shape[3])


class Shown(NamedTuple):
    """What a step sees of a cache entry: the visual tokens ``keep (K,)``, and all slots with them (None: all there are)."""

    keep: Tensor
    slots: Slots | None


def same(rows: Tensor, others: Tensor) -> bool:
    """Tell whether this is one tensor, or two on the host that say the same; no device is asked."""
    return rows is others or (rows.device.type == others.device.type == "cpu" and torch.equal(rows, others))
