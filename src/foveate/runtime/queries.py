"""Attention that only some of its rows ask: the others have no queries, and are there as keys and values all the same.

The query projection and the one after the kernel are given those rows alone; between them, where stock code wants all rows,
the missing ones are zeros that the kernel does not see. (Flash kernels see them: they align queries and keys by their ends.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.runtime.layout import Rows, take_rows
from foveate.runtime.masks import of_queries
from foveate.runtime.parking import spread
from foveate.runtime.signals.reading import Reading


class Queries:
    """Which rows of an attention ask.

    Args:
        asking: the layout of those rows.
        take: ``(B, Q)`` the slot that each of its places has among all rows.
        width: all rows, ``P``.
        lent: ``(B, P, C)``, what all rows are, where the layer itself has only those that ask; None: it has all, and the
            others get zeros.
        causal: what the kernel does without a mask.
        flash: the kernel is one of flash attention.
    """

    def __init__(
        self, asking: Rows, take: Tensor, width: int, lent: Tensor | None, *, causal: bool, flash: bool
    ) -> None:
        self.take, self.width, self.lent, self.causal, self.flash = take, width, lent, causal, flash
        self.alone = lent is not None
        batch = take.shape[0]
        flat = take + torch.arange(batch, device=take.device)[:, None] * width
        self.valid = None if self.alone else asking.valid
        if self.valid is None:
            self.shape, self.place = take.shape, flat.flatten()
        else:  # padding of ours asks nothing
            self.shape = torch.Size((1, sum(asking.lengths)))
            self.place = flat.flatten()[torch.argsort((~self.valid).flatten().to(torch.uint8), stable=True)]
            self.place = self.place[: self.shape[1]]

    def own(self, x: Tensor) -> Tensor:
        """Return the rows that ask, of all of them ``(B, P, C)``."""
        return x.flatten(0, 1).index_select(0, self.place.to(x.device)).view(*self.shape, x.shape[-1])

    def back(self, x: Tensor) -> Tensor:
        """Return what was made of them, among ``(B, P, C)`` zeros."""
        batch = self.take.shape[0]
        out = x.new_zeros(batch * self.width, x.shape[-1]).index_copy_(0, self.place.to(x.device), x.flatten(0, -2))
        return out.view(batch, self.width, -1)

    def tell(self, reading: Reading) -> None:
        """Have a reading of this attention look at those queries."""
        reading.attending = self
        asks = torch.zeros(len(self.take), self.width, dtype=torch.bool, device=self.take.device)
        asks = asks.flatten().index_fill(0, self.place, True).view_as(asks)
        asks = asks if reading.valid is None else asks & reading.valid
        if self.flash:
            reading.valid = asks
            return
        here = torch.arange(self.take.shape[1], device=self.take.device).expand_as(self.take)
        rank = torch.full_like(asks, -1, dtype=torch.long).scatter(1, self.take, here)
        reading.queries = {
            name: torch.where(slots < 0, -1, rank.gather(1, slots.clamp(min=0)))
            for name, slots in reading.queries.items()
        }
        reading.valid = asks.gather(1, self.take)

    def narrow(self, query: Tensor, mask: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor | None]:
        """Return the queries ``(B, H, Q, d)`` of the rows that ask, their mask, and their places for `widen`."""
        if self.flash:
            return query, mask, None
        if mask is None and self.causal:  # then queries and keys are the same rows
            places = torch.arange(self.width, device=query.device)
            mask = (places <= self.take.to(query.device)[:, :, None])[:, None]
        elif isinstance(mask, Tensor) and mask.shape[-2] > 1:
            mask = take_rows(mask, self.take, 2)
        elif mask is not None and not isinstance(mask, Tensor):
            mask = of_queries(mask, self.take)
        return take_rows(query, self.take, 2), mask, self.take

    def widen(self, output: Tensor, place: Tensor | None, n: int) -> Tensor:
        """Attention ``(B, Q, H, d)`` of those rows, back among ``n``."""
        return output if place is None else spread(output, place, n)
