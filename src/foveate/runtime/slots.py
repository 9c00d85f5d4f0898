"""Which slots of a cache entry a step of decoding sees, where a decode site has chosen.

Keys and values of these are gathered, which copies them in every layer. Where a choice lasts, an entry is put in order instead,
once: what steps see then stands behind the rest, and is a view. Keys carry their positions, so attention does not ask for their
order; masks are derived by positions (`foveate.runtime.masks`), which move with what has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.runtime.layout import take_rows
from foveate.runtime.masks import View

#: Steps that see the same before an entry is put in order, which takes as long as three of them gather at usual shares.
LASTING = 3


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

    def of_rows(self, rows: Tensor) -> Slots:
        """The same for batch rows ``rows (B',)``."""
        valid = None if self.valid is None else self.valid[rows]
        return Slots.of(View(self.index[rows], valid), *self.shape[1:])

    def take(self, x: Tensor) -> Tensor:
        """Return their rows of ``x (B, H, T, d)``."""
        rows = self.rows if self.rows.device == x.device else self.rows.to(x.device)
        if self.shape[0] == 1:
            return x.index_select(2, rows)
        if x.shape[:3] != self.shape or not x.is_contiguous():
            return take_rows(x, self.index, 2)
        return x.view(-1, x.shape[3]).index_select(0, rows).view(*x.shape[:2], -1, x.shape[3])


class LastSlots(View):
    """The slots that a step sees where they stand behind the rest."""

    @classmethod
    def like(cls, view: View, length: int) -> LastSlots:
        """Return as many as in ``view``, the last ones of ``length``."""
        batch, n = view.index.shape
        return cls(torch.arange(length - n, length, device=view.index.device).expand(batch, -1), view.valid)

    def append(self, place: int) -> LastSlots:
        return LastSlots.like(super().append(place), place + 1)

    def of_rows(self, rows: Tensor) -> LastSlots:
        """The same for batch rows ``rows (B',)``."""
        valid = None if self.valid is None else self.valid[rows]
        return LastSlots(self.index[:1].expand(len(rows), -1), valid)

    def take(self, x: Tensor) -> Tensor:
        """Return their rows of ``x (B, H, T, d)``: a view."""
        return x[:, :, -self.index.shape[1] :]


class Shown(NamedTuple):
    """What a step sees of a cache entry.

    Attributes:
        keep: ``(K,)`` the visual tokens.
        slots: all slots with them; None: all there are.
        steps: how many have seen the same so far.
    """

    keep: Tensor
    slots: Slots | LastSlots | None
    steps: int = 1

    def of_rows(self, rows: Tensor, picked: Tensor) -> Shown:
        """The same for batch rows ``rows (B',)``, whose visual tokens were the ones ``picked (N',)``."""
        keep, slots = torch.isin(picked, self.keep).nonzero().flatten(), self.slots
        return Shown(keep, None if slots is None else slots.of_rows(rows.to(picked.device)), self.steps)


def same(rows: Tensor, others: Tensor) -> bool:
    """Tell whether this is one tensor, or two on the host that say the same; no device is asked."""
    return rows is others or (rows.device.type == others.device.type == "cpu" and torch.equal(rows, others))
