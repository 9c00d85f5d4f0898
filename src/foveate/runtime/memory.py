"""The images that the vision tower has encoded under a handle, recognised when a caller brings their features back.

Nothing but the features themselves tells which image they are of: callers move, save, cut and concatenate them. So an image is
known by its first and its last row, bit for bit, and its geometry is looked up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
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
_LIMIT = 4096  # images that are remembered, with their geometry and the first and last row of each of two forms

Frame = tuple[int, int]  # height and width


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
        home: as in `Record`.
    """

    number: int
    start: int
    grid: Grid
    patch: Tensor
    hole: Tensor | None
    sizes: Tensor | None
    coords: Tensor | None
    home: Tensor | None

    def complete(self, rows: Tensor) -> Tensor:
        """Features that are left ``(m, C)`` at their places among all ``(n, C)``, marked where one is missing."""
        if self.hole is None or len(rows) == len(self.hole):
            return rows
        hole = self.hole.to(rows.device)
        place = ((~hole).cumsum(0) - 1).clamp(min=0)
        return mark(rows.index_select(0, place), hole, self.number, self.start)

    def follows(self, before: Encoding | None) -> bool:
        """Tell whether this image came right after ``before`` in one tower call; None: whether it came first."""
        if before is None:
            return self.start == 0
        return self.number == before.number and self.start == before.start + len(before.patch)

    @property
    def frames(self) -> list[Frame]:
        """Height and width of each frame."""
        return frames_of(self.grid)


Known = list[tuple[Encoding, slice]]  # images one after another, and where their rows are


def frames_of(grid: Grid) -> list[Frame]:
    """Height and width of each frame of a grid, however it says that they belong together."""
    return [(h, w) for t, h, w in grid for _ in range(t)]


@dataclass(frozen=True, eq=False)
class _Form:
    """An encoding as it may come back: so many rows, of which these are the first and the last.

    Where tokens have left and it is at full length, one of its marks, too: the features of a model without the method have
    the same rows where nothing has left.
    """

    encoding: Encoding
    length: int
    first: bytes
    last: bytes
    mark: tuple[int, bytes] | None  # which row it is


class Remembered:
    """The encodings that a handle remembers, by the rows with which they begin; for all threads.

    It knows those of other handles, too: an assistant model is given the features of the model that it assists.

    Args:
        acts: whether the handle's method acts in the vision tower, so that encodings of one that does not are foreign.
    """

    _all: ClassVar[WeakSet[Remembered]] = WeakSet()
    _all_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, acts: bool) -> None:
        self.acts = acts
        with self._all_lock:
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
        if len(self._new) > _LIMIT:  # `find` has not been called for a while
            self._take_in()

    def find(self, rows: Tensor, ends: Collection[int], said: Sequence[Frame] | None) -> Known | None:
        """Return the encodings that ``rows (n, C)`` are, one after another; None if a part of them is unknown.

        Where several fit (blank images have equal rows), those of the size that the caller says come first, then those that end
        where the piece of the features does, those that came next in their tower call, and the newest.

        Args:
            rows: all features.
            ends: where pieces of them end.
            said: size of each frame, if the caller gives it.
        """
        keys = _bytes(rows)
        with self._all_lock:
            others = [other for other in self._all if other is not self and other.acts >= self.acts]
        return next((found for each in (self, *others) if (found := each._find(keys, ends, said)) is not None), None)

    def _find(self, keys: list[bytes], ends: Collection[int], said: Sequence[Frame] | None) -> Known | None:
        """Try what fits, best first, and go back where nothing fits any more."""
        self._take_in()
        found: Known = []
        frames = [0]  # that are before each of those found, and before the next one
        left = [self._fitting(keys, 0, ends, said)]  # what is still to be tried at each place
        while left:
            start = found[-1][1].stop if found else 0
            if start == len(keys):
                return found
            if left[-1]:
                form = left[-1].pop()
                found.append((form.encoding, slice(start, start + form.length)))
                frames.append(frames[-1] + len(form.encoding.frames))
                rest = None if said is None else said[frames[-1] :]
                left.append(self._fitting(keys, start + form.length, ends, rest, form.encoding))
            else:
                left.pop()
                frames.pop()
                if found:
                    found.pop()
        return None

    def _fitting(
        self,
        keys: list[bytes],
        start: int,
        ends: Collection[int] = (),
        said: Sequence[Frame] | None = None,
        before: Encoding | None = None,
    ) -> list[_Form]:
        """Return the encodings that fit from there on, the best one last."""
        if start >= len(keys):
            return []
        forms = [form for form in tuple(self._forms.get(keys[start], ())) if _fits(form, keys, start)]

        piece = min((end for end in ends if end > start), default=-1)

        def rank(form: _Form) -> tuple[bool, bool, bool]:
            own = form.encoding.frames
            as_said = said is not None and own == list(said[: len(own)])
            return as_said, start + form.length == piece, form.encoding.follows(before)

        return sorted(forms, key=rank)

    def search(self, rows: Tensor) -> Iterator[slice]:
        """Where among ``rows (n, C)`` encodings stand, with text between them."""
        self._take_in()
        start, keys = 0, _bytes(rows)
        while start < len(keys):
            forms = self._fitting(keys, start)
            if forms:
                yield slice(start, start + forms[-1].length)
            start += forms[-1].length if forms else 1

    def _take_in(self) -> None:
        with self._lock:
            new, self._new = self._new, []
            keys = _all_bytes([ends for ends, _ in new])
            for ends, pairs in new:
                for encoding, length in pairs:
                    form = _Form(encoding, length, next(keys), next(keys), _mark_of(encoding, length, ends))
                    self._forms.setdefault(form.first, []).append(form)
                    self._order.append(form)
            while len(self._order) > 2 * _LIMIT:
                form = self._order.popleft()
                self._forms[form.first].remove(form)
                if not self._forms[form.first]:
                    del self._forms[form.first]


def _fits(form: _Form, keys: list[bytes], start: int) -> bool:
    end = start + form.length
    marked = form.mark is None or (start + form.mark[0] < len(keys) and keys[start + form.mark[0]] == form.mark[1])
    return end <= len(keys) and keys[end - 1] == form.last and marked


def _mark_of(encoding: Encoding, length: int, like: Tensor) -> tuple[int, bytes] | None:
    """Return the first hole of an encoding at full length, and how its row is marked in rows ``like`` these."""
    if encoding.hole is None or length < len(encoding.hole):
        return None
    places = encoding.hole.nonzero()
    if len(places) == 0:
        return None
    place = int(places[0])
    row = mark(like.new_zeros(1, _CHANNELS + 1), like.new_ones(1).bool(), encoding.number, encoding.start + place)
    return place, _bytes(row)[0]


def _all_bytes(parts: Sequence[Tensor]) -> Iterator[bytes]:
    """Return the `_bytes` of each part, fetched from the device at once for all parts that are alike."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, part in enumerate(parts):
        alike.setdefault((part.dtype, part.device, part.shape[1]), []).append(i)
    found: dict[int, list[bytes]] = {}
    for numbers in alike.values():
        keys = iter(_bytes(torch.cat([parts[i] for i in numbers])))
        found |= {i: [next(keys) for _ in range(len(parts[i]))] for i in numbers}
    return (key for i in range(len(parts)) for key in found[i])


def _bytes(rows: Tensor) -> list[bytes]:
    """Return the bytes by which rows are compared: their first channels, marks included."""
    part = rows[:, :_CHANNELS].detach().nan_to_num(nan=0.0).cpu().contiguous()
    return [bytes(row) for row in part.view(torch.uint8).numpy()]


def encodings_of(record: Record, number: int) -> list[Encoding]:
    """Return the images and videos of a tower call, which has a ``number``."""
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
                None if record.home is None else torch.where(record.home < 0, -1, record.home - first)[first:cell],
            )
        )
    return found


def record_of(found: Sequence[Encoding], pixels: str, rows: Sequence[Tensor], stored: Sequence[Tensor] = ()) -> Record:
    """Return the record of a tower call that had encoded just these, in this order, with features ``rows``, and of which
    ``stored`` was kept (`Record.stored`)."""
    device = rows[0].device
    grids = [entry for encoding in found for entry in encoding.grid]
    cells = offsets([sum(t * h * w for t, h, w in encoding.grid) for encoding in found])
    patch = torch.cat([torch.where(e.patch >= 0, e.patch + cell, e.patch) for e, cell in zip(found, cells)])
    order = Order(grids, patch, tuple(offsets([len(encoding.patch) for encoding in found])))
    complete = [tokens_of(frames(encoding.grid), device) for encoding in found]
    hole = sizes = coords = home = None
    if any(e.hole is not None for e in found):
        none = torch.zeros(max(len(e.patch) for e in found), dtype=torch.bool, device=device)
        hole = torch.cat([none[: len(e.patch)] if e.hole is None else e.hole.to(device) for e in found])
    if any(e.sizes is not None for e in found):
        sizes = torch.cat([t.sizes if e.sizes is None else e.sizes.to(device) for e, t in zip(found, complete)])
    if any(e.coords is not None for e in found):
        coords = torch.cat([t.coords if e.coords is None else e.coords.to(device) for e, t in zip(found, complete)])
    if any(e.home is not None for e in found):
        own = [torch.arange(len(t), device=device) if e.home is None else e.home for e, t in zip(found, complete)]
        home = torch.cat([torch.where(each < 0, -1, each + cell).to(device) for each, cell in zip(own, cells)])
    parts = tuple(row.detach() for row in rows)
    return Record(order, hole, sizes, coords, pixels, parts, home=home, stored=stored)
