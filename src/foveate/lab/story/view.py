"""One grid of tokens on its way through the model: which cell of the picture is part of which token, and what became of it.

A token that is merged into another one lives on in it, so a cell follows its token from group to group until that leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Shape = tuple[int, int]

ALIVE, MERGED, SKIPPED, PARKED, LENT, RESTORED, DROPPED, WITHDRAWN, HIDDEN, ABSENT = "amsplrdwhx"


@dataclass(frozen=True)
class Frame:
    """A picture of one grid at one step.

    Attributes:
        height, width: cells; four to a token where single patches of a 2x2 unit are parked, else one.
        states: a letter for each cell in raster order: ``a`` a token of its own, ``m`` part of a merged one, ``s`` one
            that skips the attention or the FFN of this layer, ``p`` parked,
            ``l`` parked and lending keys and values, ``r`` back after it was parked, ``d`` dropped before any decoder layer
            has read it, ``w`` withdrawn after that, ``h`` in the cache but hidden from the last generated token, ``x``
            absent from a grid that stock code has put together: left earlier, or part of another token.
        owners: the token that each cell is part of (-1: none), where some are merged; else None.
        marks: where the merged tokens are, ``(y, x)`` in cells; None as above.
        layers: of the cache, a digit for each cell: 9 if all decoder layers hold it, 0 if none does; else None.
        resized: share of the image's height and width that it was shrunk to, or None.
    """

    height: int
    width: int
    states: str
    owners: tuple[int, ...] | None = None
    marks: tuple[tuple[float, float], ...] | None = None
    layers: str | None = None
    resized: tuple[float, float] | None = None


class View:
    """A grid of ``shape`` tokens, each drawn as ``fine`` x ``fine`` cells; changed step by step."""

    def __init__(self, shape: Shape, fine: int = 1) -> None:
        self.fine = fine
        self.resized: tuple[float, float] | None = None
        self._full: tuple[Ints, Shape] | None = None  # numbers and grid before resizing
        self._start(shape)

    def _start(self, shape: Shape) -> None:
        self.shape = self.ids = shape  # of the drawing, and of the numbers of tokens
        height, width = (side * self.fine for side in shape)
        y, x = np.divmod(np.arange(height * width), max(width, 1))
        self.owner: Ints = (y // self.fine) * shape[1] + x // self.fine
        self.inner = y % self.fine, x % self.fine
        self.parked: Flags = np.zeros(len(y), bool)
        self.restored: Flags = np.zeros(len(y), bool)
        self.hidden: Flags = np.zeros(len(y), bool)
        self.skipped: Flags = np.zeros(len(y), bool)
        self.left = np.full(len(y), "", dtype="<U1")
        self.places: dict[int, tuple[float, float]] = {}

    @property
    def running(self) -> Flags:
        """Cells whose token goes through the layer."""
        return (self.owner >= 0) & ~self.parked

    @property
    def present(self) -> Flags:
        """Cells whose token has not left."""
        return self.owner >= 0

    def tokens(self) -> float:
        """Tokens that go through the layer; a part of one where some of its patches are parked."""
        return len(np.unique(self._units(self.fine)[self.running])) / self.fine**2

    def resize(self, shape: Shape, kept: Sequence[int]) -> None:
        """The image was made smaller; cell by cell, ``kept`` tokens of the old grid stand for those of the new one."""
        numbers = np.asarray(kept, np.int64)
        self._full = (numbers, self.ids) if self._full is None else (self._full[0][numbers], self._full[1])
        self._start(shape)
        self.resized = shape[0] / self._full[1][0], shape[1] / self._full[1][1]

    def in_full(self) -> None:
        """From here on tokens have the numbers of the grid before resizing, as the language model knows them."""
        if self._full is None:
            return
        (numbers, shape), self._full = self._full, None
        self.places = {int(numbers[token]): self._place(int(token)) for token in np.unique(self.owner[self.present])}
        self.owner = np.where(self.present, numbers[self.owner], -1)
        self.ids = shape

    def park(self, kept: Sequence[int], shape: Shape) -> None:
        """Only ``kept`` of a grid of ``shape`` (patches, or tokens) go on; the others wait."""
        going = np.zeros(shape[0] * shape[1], bool)
        going[list(kept)] = True
        self.parked = self.present & ~going[self._units(shape[0] // self.ids[0])]

    def restore(self) -> None:
        """Those that waited are back."""
        self.restored |= self.parked
        self.parked = np.zeros_like(self.parked)

    def reduce(
        self,
        present: Sequence[int],
        kept: Sequence[int],
        groups: Sequence[int] | None,
        places: Mapping[int, tuple[float, float]],
        letter: str,
    ) -> None:
        """Of the ``present`` tokens the ``kept`` ones stay.

        Args:
            groups: for each present token the kept one that it is part of now, as an index, or ``len(kept)``; None:
                nothing merges.
            places: of tokens that are not at their own place, ``(y, x)`` in tokens.
            letter: what a cell is whose token leaves.
        """
        table = np.full(self.ids[0] * self.ids[1], -1, np.int64)
        if groups is None:
            table[list(kept)] = list(kept)
        else:
            table[list(present)] = np.append(np.asarray(kept, np.int64), -1)[list(groups)]
        before = self.present
        self.owner = np.where(before, table[self.owner], -1)
        self.left[before & ~self.present] = letter
        scale = [drawn / numbered for drawn, numbered in zip(self.shape, self.ids)]
        for token, (y, x) in places.items():
            self.places[token] = (y + 0.5) * scale[0] - 0.5, (x + 0.5) * scale[1] - 0.5

    def skip(self, going: Sequence[int]) -> None:
        """Only those ``going`` go through a part of the layer."""
        goes = np.zeros(self.ids[0] * self.ids[1], bool)
        goes[list(going)] = True
        self.skipped |= self.running & ~goes[self.owner]

    def hide(self, shown: Sequence[int]) -> None:
        """The last generated token saw only those ``shown``."""
        seen = np.zeros(self.ids[0] * self.ids[1], bool)
        seen[list(shown)] = True
        self.hidden = self.present & ~seen[self.owner]

    def frame(self, lends: bool = False, layers: npt.NDArray[np.float64] | None = None) -> Frame:
        """As it is now. ``lends``: what is parked lends keys and values here; ``layers``: share of them that held a cell."""
        states = np.where(self.present, np.where(self.restored, RESTORED, ALIVE), self.left)
        tokens, counts = np.unique(self.owner[self.present], return_counts=True)
        merged = tokens[counts > self.fine**2]
        states[np.isin(self.owner, merged)] = MERGED
        states[self.skipped] = SKIPPED
        states[self.parked] = LENT if lends else PARKED
        states[self.hidden] = HIDDEN
        marks = [((y + 0.5) * self.fine, (x + 0.5) * self.fine) for y, x in map(self._place, merged.tolist())]
        return Frame(
            self.shape[0] * self.fine,
            self.shape[1] * self.fine,
            "".join(states.tolist()),
            tuple(self.owner.tolist()) if len(merged) else None,
            tuple((round(y, 2), round(x, 2)) for y, x in marks) if len(merged) else None,
            None if layers is None else "".join(str(round(9 * share)) for share in layers.tolist()),
            self.resized,
        )

    def _place(self, token: int) -> tuple[float, float]:
        return self.places.get(token) or divmod(token, self.ids[1])

    def _units(self, per: int) -> Ints:
        """For each cell the raster index of its token's part there, in a grid with ``per`` x ``per`` parts of each token."""
        y, x = np.divmod(np.maximum(self.owner, 0), self.ids[1])
        dy, dx = (inner * per // self.fine for inner in self.inner)
        found: Ints = (y * per + dy) * (self.ids[1] * per) + x * per + dx
        return found
