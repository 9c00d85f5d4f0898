"""The images that the vision tower has encoded under a handle, recognised when a caller brings their features back.

Nothing but the features themselves tells which image they are of: callers move, save, cut and concatenate them. So an image is
known by its first and its last row, bit for bit, and its geometry is looked up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakSet

import torch
from torch import Tensor

from foveate.models.family import Grid
from foveate.ops.segments import offsets
from foveate.runtime.arrange import Order
from foveate.runtime.context import Record
from foveate.runtime.layout import frames, tokens_of
from foveate.runtime.marks import mark

_CHANNELS = 32  # of a row, by which it is recognised
_LIMIT = 4096  # images that are remembered, each with its geometry and its first and last row


@dataclass(frozen=True, eq=False)
class Encoding:
    """An image or video that the vision tower has encoded under this handle.

    Attributes:
        number: of the tower call.
        start: number of its first feature among those of the call.
        grid: what the language model sees of it.
        patch: ``(n,)`` on the host, for every feature its cell of ``grid``; -1: no patch.
        hole: ``(n,)`` bool, or None: nothing has left.
        sizes, coords: of every cell, where something was merged or moved.
    """

    number: int
    start: int
    grid: Grid
    patch: Tensor
    hole: Tensor | None
    sizes: Tensor | None
    coords: Tensor | None

    def complete(self, rows: Tensor) -> Tensor:
        """Features that are left ``(m, C)`` at their places among all ``(n, C)``, marked where one is missing."""
        if self.hole is None or len(rows) == len(self.hole):
            return rows
        hole = self.hole.to(rows.device)
        place = ((~hole).cumsum(0) - 1).clamp(min=0)
        return mark(rows.index_select(0, place), hole, self.number, self.start)


@dataclass(frozen=True, eq=False)
class _Form:
    """An encoding as it may come back: so many rows, of which these are the first and the last."""

    encoding: Encoding
    length: int
    first: bytes
    last: bytes


class Memory:
    """The encodings that a handle remembers, by the rows with which they begin; for all threads.

    It knows those of other handles, too: an assistant model is given the features of the model that it assists.

    Args:
        acts: whether the handle's method acts in the vision tower, so that encodings of one that does not are foreign.
    """

    _all: ClassVar[WeakSet[Memory]] = WeakSet()

    def __init__(self, acts: bool) -> None:
        self.acts = acts
        self._all.add(self)
        self._lock = threading.Lock()
        self._forms: dict[bytes, list[_Form]] = {}
        self._order: deque[_Form] = deque()
        self._new: list[tuple[Tensor, list[tuple[Encoding, int]]]] = []  # ends of rows that are still on the device

    def add(self, encodings: Sequence[Encoding], parts: Sequence[Tensor], dtype: torch.dtype) -> None:
        """Remember encodings by their rows, as they are and in the dtype of the language model."""
        pairs = [(encoding, len(part)) for encoding, part in zip(encodings, parts) if len(part)]
        if not pairs:
            return
        ends = torch.stack([row for part in parts if len(part) for row in (part[0], part[-1])]).detach()
        ends = ends[:, :_CHANNELS]
        with self._lock:
            self._new += [(ends.to(kind), pairs) for kind in {ends.dtype, dtype}]
        if len(self._new) > _LIMIT:  # nobody has looked for a while
            self._take_in()

    def find(self, rows: Tensor) -> list[tuple[Encoding, slice]] | None:
        """The encodings that ``rows (n, C)`` are, one after another; None if a part of them is unknown."""
        keys = _bytes(rows)
        others = [other for other in self._all if other is not self and other.acts >= self.acts]
        return next((found for memory in (self, *others) if (found := memory._find(keys)) is not None), None)

    def _find(self, keys: list[bytes]) -> list[tuple[Encoding, slice]] | None:
        self._take_in()
        found, start = [], 0
        while start < len(keys):
            form = self._at(keys, start)
            if form is None:
                return None
            found.append((form.encoding, slice(start, start + form.length)))
            start += form.length
        return found

    def search(self, rows: Tensor) -> Iterator[slice]:
        """Where among ``rows (n, C)`` encodings stand, with text between them."""
        self._take_in()
        start, keys = 0, _bytes(rows)
        while start < len(keys):
            form = self._at(keys, start)
            if form is not None:
                yield slice(start, start + form.length)
            start += 1 if form is None else form.length

    def _at(self, keys: list[bytes], start: int) -> _Form | None:
        for form in reversed(self._forms.get(keys[start], ())):  # the newest of equal ones
            if start + form.length <= len(keys) and keys[start + form.length - 1] == form.last:
                return form
        return None

    def _take_in(self) -> None:
        with self._lock:
            for ends, pairs in self._new:
                keys = _bytes(ends)
                for (encoding, length), first, last in zip(pairs, keys[::2], keys[1::2]):
                    form = _Form(encoding, length, first, last)
                    self._forms.setdefault(first, []).append(form)
                    self._order.append(form)
            self._new = []
            while len(self._order) > 2 * _LIMIT:
                form = self._order.popleft()
                self._forms[form.first].remove(form)
                if not self._forms[form.first]:
                    del self._forms[form.first]


def _bytes(rows: Tensor) -> list[bytes]:
    """What is compared of each row, marks included: its first channels, bit for bit."""
    part = rows[:, :_CHANNELS].detach().nan_to_num(nan=0.0).cpu().contiguous()
    return [bytes(row) for row in part.view(torch.uint8).numpy()]


def encodings_of(record: Record, number: int) -> list[Encoding]:
    """The images and videos of a tower call, which has a ``number``."""
    order, found, entry, cell = record.order, [], 0, 0
    for start, end in zip(order.starts, order.starts[1:]):
        patch = order.patch[start:end]
        first, n = cell, int((patch >= 0).sum())
        grid: Grid = []
        while cell < first + n:
            grid.append(order.grid[entry])
            t, h, w = order.grid[entry]
            entry, cell = entry + 1, cell + t * h * w
        found.append(
            Encoding(
                number,
                start,
                grid,
                torch.where(patch >= 0, patch - first, patch),
                None if record.hole is None else record.hole[start:end],
                None if record.sizes is None else record.sizes[first:cell],
                None if record.coords is None else record.coords[first:cell],
            )
        )
    return found


def record_of(found: Sequence[Encoding], pixels: str, rows: Sequence[Tensor]) -> Record:
    """The record of a tower call that had encoded just these, in this order, with features ``rows``."""
    device = rows[0].device
    grids = [entry for encoding in found for entry in encoding.grid]
    cells = offsets([sum(t * h * w for t, h, w in encoding.grid) for encoding in found])
    patch = torch.cat([torch.where(e.patch >= 0, e.patch + cell, e.patch) for e, cell in zip(found, cells)])
    order = Order(grids, patch, tuple(offsets([len(encoding.patch) for encoding in found])))
    complete = [tokens_of(frames(encoding.grid), device) for encoding in found]
    hole = sizes = coords = None
    if any(e.hole is not None for e in found):
        none = torch.zeros(max(len(e.patch) for e in found), dtype=torch.bool, device=device)
        hole = torch.cat([none[: len(e.patch)] if e.hole is None else e.hole.to(device) for e in found])
    if any(e.sizes is not None for e in found):
        sizes = torch.cat([t.sizes if e.sizes is None else e.sizes.to(device) for e, t in zip(found, complete)])
    if any(e.coords is not None for e in found):
        coords = torch.cat([t.coords if e.coords is None else e.coords.to(device) for e, t in zip(found, complete)])
    return Record(order, hole, sizes, coords, pixels, tuple(row.detach() for row in rows))
