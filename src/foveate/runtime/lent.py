"""Keys that a cache entry does not hold, as they are those of another layer's entry (`foveate.answers.Reuse`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Lent:
    """Which keys of a cache entry are another layer's, and where its own are. The entry's values are all there.

    Own keys stand in the order in which they have come. Where rows of a batch have got different numbers of them at once, they
    stand right-aligned, behind padding.

    Attributes:
        mask: ``(B, P)`` bool, of the ``P`` tokens of the entry those whose keys are lent.
        place: ``(B, P)`` int64, which of the entry's keys is that of each other token.
        own: keys that the entry holds in every row.
    """

    mask: Tensor
    place: Tensor
    own: int

    @classmethod
    def none(cls, batch: int, length: int, device: torch.device) -> Lent:
        """Of an entry that has held all of its keys so far."""
        place = torch.arange(length, device=device).expand(batch, -1)
        return cls(torch.zeros(batch, length, dtype=torch.bool, device=device), place, length)

    def arrived(self, mask: Tensor, fewest: int) -> tuple[Lent, Tensor]:
        """After a forward that brings tokens of which those of ``mask (B, n)`` are lent, ``fewest`` in a row at least.

        Returns:
            that, and ``(B, n - fewest)`` the tokens of this forward whose keys are to be held.
        """
        own = mask.shape[1] - fewest
        take = torch.argsort((~mask).byte(), dim=1, stable=True)[:, fewest:]  # own ones last, in their order
        place = self.own + (~mask).cumsum(1) - 1 + (mask.sum(1, keepdim=True) - fewest)
        found = Lent(torch.cat([self.mask, mask], 1), torch.cat([self.place, place.clamp(min=0)], 1), self.own + own)
        return found, take

    def append(self, n: int) -> Lent:
        """After a forward of ``n`` tokens whose keys are all held."""
        batch, device = len(self.mask), self.mask.device
        place = torch.arange(self.own, self.own + n, device=device).expand(batch, -1)
        mask = torch.zeros(batch, n, dtype=torch.bool, device=device)
        return Lent(torch.cat([self.mask, mask], 1), torch.cat([self.place, place], 1), self.own + n)

    def spread(self, keys: Tensor) -> Tensor:
        """Return a row for each token ``(B, H, P, d)``, anything where the key is lent, of the own ``keys (B, H, own, d)``."""
        if not self.own:
            return keys.new_zeros(*keys.shape[:2], self.place.shape[1], keys.shape[3])
        place = self.place.to(keys.device)[:, None, :, None]
        return keys.gather(2, place.expand(-1, keys.shape[1], -1, keys.shape[3]))

    def up_to(self, length: int) -> Lent:
        """Of the first ``length`` tokens; this asks the device."""
        mask, place = self.mask[:, :length], self.place[:, :length]
        own = int(torch.where(mask, -1, place).max()) + 1 if mask.numel() else 0
        return Lent(mask, place.clamp(max=max(own - 1, 0)), own)  # (that of one whose key is lent is any)

    def select(self, rows: Tensor) -> Lent:
        """Of rows ``rows (B',)`` of the batch."""
        rows = rows.to(self.mask.device)
        return Lent(self.mask[rows], self.place[rows], self.own)
