"""The text tokens that are present beside the visual ones of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from foveate.errors import InputError
from foveate.runtime.layout import Rows
from foveate.runtime.samples import Samples


class Text:
    """The text tokens of a padded batch, for as long as its layout is in force.

    Args:
        layout: what is present.
        samples: what is packed into each row.
        real: ``(B, P)`` bool, False for padding; None: there is none.
        where: places ``(B, ...)`` in the full sequence -> where these tokens are now, -1 for a place that is none.
        given: ``(B, L)`` token ids of the full sequence; None: the call has none.
    """

    def __init__(
        self,
        layout: Rows,
        samples: Samples,
        real: Tensor | None,
        where: Callable[[Tensor], Tensor],
        given: Tensor | None = None,
    ) -> None:
        self.layout, self.samples, self.real, self.where, self.given = layout, samples, real, where, given

    @cached_property
    def mask(self) -> Tensor:
        """``(B, P)`` bool: the tokens that are text."""
        layout = self.layout
        is_text = torch.ones(len(layout.lengths), layout.width, dtype=torch.bool, device=layout.row.device)
        is_text[layout.row, layout.slot] = False
        return is_text if self.real is None else is_text & self.real

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many each sample has. This asks the device once."""
        if not self.samples.several:
            return tuple(int(n) for n in self.mask.sum(1).tolist())
        return tuple(int(n) for n in self.samples.count(self.layout.index, self.mask).flatten().tolist())

    @property
    def ids(self) -> Tensor:
        """``(M,)`` token ids, sample after sample."""
        if self.given is None:
            raise InputError(
                "the method reads the words of the question, and this call brings embeddings in place of them: give input_ids"
            )
        given = self.given.to(self.layout.row.device)
        return self.packed(given if self.layout.index is None else self.layout.of_full(given, 1))

    def packed(self, x: Tensor) -> Tensor:
        """``(M, ...)`` the text tokens of ``x (B, P, ...)``, sample after sample."""
        return x[self.mask.to(x.device)]

    def slots(self, rows: str) -> Tensor:
        """``(B, S * R)`` where the tokens are that ``rows`` names: ``last``, ``question`` or ``text``; -1: there is none."""
        if rows == "last":
            return self.where(self.samples.last)
        return self.where(self.samples.question.flatten(1)) if rows == "question" else self._all

    @cached_property
    def _all(self) -> Tensor:
        counts = torch.tensor(self.counts)
        slot = self.mask.nonzero()[:, 1]
        sample = torch.arange(len(counts)).repeat_interleave(counts)
        rank = torch.arange(len(sample)) - (counts.cumsum(0) - counts)[sample]
        table = torch.full((len(counts), max(self.counts, default=0)), -1, device=slot.device)
        table = table.index_put((sample.to(slot.device), rank.to(slot.device)), slot)
        return table.view(len(self.layout.lengths), -1)

    def place(self, rows: str) -> Tensor:
        """``(B * S, R)`` which of the packed text tokens those are; -1: none."""
        slots = self.slots(rows)
        rank = (self.mask.flatten().cumsum(0) - 1).view_as(self.mask)
        place = torch.where(slots < 0, -1, rank.gather(1, slots.clamp(min=0)))
        return place.view(len(self.counts), -1)
