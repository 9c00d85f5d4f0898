"""What forwards in flight leave to do inside of the model, as plain attributes, by which compiled code is chosen."""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.runtime.layout import take_rows


class Cut(NamedTuple):
    """What a mask of the full sequence keeps for a generated token.

    Attributes:
        places: ``(B, P)`` those before ``start``; None: none of them.
        start: all places from there on stay.
        valid: ``(B, P)`` bool, False for padding of ours; None: there is none.
    """

    places: Tensor | None
    start: int
    valid: Tensor | None

    def of(self, mask: Tensor) -> Tensor:
        """``(B, 1, 1, P')`` of a mask ``(B or 1, 1, 1, T)``."""
        if self.places is None:
            return mask[..., self.start :]
        mask = mask.expand(len(self.places), -1, -1, -1)
        kept = take_rows(mask[..., : self.start], self.places, 3)
        if self.valid is not None:
            hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            kept = kept.masked_fill(~self.valid[:, None, None, :], hidden)
        return torch.cat([kept, mask[..., self.start :]], -1)


class Steady:
    """The forwards of one language model, of all threads.

    Attributes:
        now: no thread is in a forward that changes more than the masks of its layers.
        cuts: of one thread that is alone, if nothing but their masks changes: for each layer what its mask keeps, or None: all.
            Nothing here, if there are several threads.
        ready: one thread is alone, in a step for which all is done that hooks inside of the model would do.
    """

    def __init__(self) -> None:
        self.now, self.ready = True, False
        self.cuts: list[Cut | None] = []
        self._lock = threading.Lock()
        self._inside: dict[int, tuple[bool, bool]] = {}

    def enter(self, steady: bool, cuts: list[Cut | None], ready: bool) -> None:
        """This thread begins a forward, or goes on with another part of it."""
        with self._lock:
            self._inside[threading.get_ident()] = steady, ready
            self._look(cuts)

    def leave(self) -> None:
        """Its forward has ended."""
        with self._lock:
            self._inside.pop(threading.get_ident(), None)
            self._look([])

    def is_ready(self) -> bool:
        """Tell whether this thread is in a step for which all is done."""
        return self._inside.get(threading.get_ident(), (True, False))[1]

    def _look(self, cuts: list[Cut | None]) -> None:
        alone = len(self._inside) == 1
        self.now = all(steady for steady, _ in self._inside.values())
        self.ready = alone and next(iter(self._inside.values()))[1]
        self.cuts = cuts if alone else []
