"""The layout of a packed sequence: the map from the units present now to the full one. Immutable; reducing it gives another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from foveate.answers import Sight
from foveate.runtime.growing import New
from foveate.runtime.layout import patches_of, reduced
from foveate.tokens import Reduction, Tokens


@dataclass(frozen=True, eq=False)
class Packed:
    """Tokens present in one sequence ``(rows, ...)`` of nothing but visual tokens, as Qwen-like towers have it.

    Attributes:
        unit: rows per token (patches that the merger joins; 1 at patch level).
        full: tokens of the full sequence.
        tokens: those present now, in sequence order.
        index: ``(N,)`` place of each in the full sequence, ascending, or None: nothing was removed.
        merged, moved: some token stands for several; is not at its own place.
        sight: who may attend to whom in an image, with the group of each token; None: all may.
    """

    unit: int
    full: int
    tokens: Tokens
    index: Tensor | None = None
    merged: bool = False
    moved: bool = False
    sight: Sight | None = None

    @property
    def width(self) -> int:
        """Rows present."""
        return len(self.tokens) * self.unit

    @property
    def n_rows(self) -> int:
        """The same: there is one sequence."""
        return self.width

    @property
    def valid(self) -> None:
        """There is no padding."""

    def pairs(self, shown: Packed) -> tuple[tuple[int, int], ...]:
        """Images are attended to one by one."""
        return ()

    def attended(self, x: Tensor) -> Tensor:
        """Rows ``(1, N * unit, ...)`` as an attention has them, as ``(N * unit, ...)``."""
        return x[0]

    def pick(self, x: Tensor) -> Tensor:
        """Rows ``(N * unit, C)`` as tokens ``(N, unit * C)``."""
        return x.reshape(len(self.tokens), self.unit * x.shape[-1])

    def put(self, x: Tensor, values: Tensor) -> Tensor:
        """Tokens ``(N', unit * C)`` as rows ``(N' * unit, C)``, in the dtype of ``x``."""
        return values.to(x.dtype).reshape(-1, x.shape[-1])

    def per_row(self, values: Tensor) -> Tensor:
        """Values ``(N, k)`` of tokens for each row ``(N * unit, k)``."""
        return values.repeat_interleave(self.unit, 0)

    def reduce(self, reduction: Reduction) -> tuple[Packed, Tensor | None]:
        """Return the layout of the survivors, and ``take (rows,)``: which of its rows these are (None: all stay)."""
        tokens, merged, moved = reduced(self, reduction)
        layout = replace(self, tokens=tokens, merged=merged, moved=moved)
        if len(tokens) == len(self.tokens):
            return layout, None
        if self.sight is not None:
            layout = layout.of_sight(replace(self.sight, group=self.sight.group[reduction.keep]))
        index = reduction.keep if self.index is None else self.index[reduction.keep]
        return replace(layout, index=index), self._rows(reduction.keep)

    def _rows(self, index: Tensor) -> Tensor:
        """``(K * unit,)`` rows of the tokens ``index (K,)``."""
        return (index[:, None] * self.unit + torch.arange(self.unit, device=index.device)).flatten()

    def of_full(self, x: Tensor, axis: int) -> Tensor:
        """Those of the full sequence's rows ``x``, which stand along ``axis``, that are present."""
        assert self.index is not None
        return x.index_select(axis, self._rows(self.index).to(x.device))

    def seqlens(self, cu_seqlens: Tensor) -> Tensor:
        """Cumulative lengths of the attention segments that still have tokens."""
        assert self.index is not None
        before = torch.searchsorted(self.index, cu_seqlens.long() // self.unit) * self.unit
        distinct: Tensor = torch.unique_consecutive(before)
        return distinct.to(cu_seqlens.dtype)

    def table(self) -> tuple[Tensor, Sequence[tuple[int, int]]]:
        """Which of the full sequence's rows are present, and two steps among them; see `foveate.runtime.layout.Rows.table`."""
        assert self.index is not None
        return self._rows(self.index), ((0, isqrt(self.unit)), (0, 1))

    def scatter(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """One row per token ``(N, C)`` back at its place among ``full`` rows, ``fill`` elsewhere."""
        if self.index is None:
            return x
        return x.new_full((self.full, x.shape[-1]), fill).index_copy_(0, self.index.to(x.device), x)

    def places(self, tokens: Tensor) -> Tensor:
        """``(K, 1)`` where the tokens ``tokens (K,)`` of a complete layout are in the full sequence."""
        return tokens[:, None]

    def grown(self, new: New) -> tuple[Packed, Tensor, Tensor]:
        """Return the layout with new tokens; which of the old and then the new rows, and tokens, it has."""
        order = new.order(self.tokens)
        index = torch.arange(len(self.tokens), device=order.device) if self.index is None else self.index
        index = torch.cat([index, new.place[new.span, 0]])[order]
        return replace(self, tokens=new.among(self.tokens, order), index=index), self._rows(order), order

    def beside(self, x: Tensor, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """``x (N * unit, C)`` and behind it the new tokens ``rows (M, unit * C)``."""
        return torch.cat([x, self.put(x, rows)])

    def of_sight(self, sight: Sight | None) -> Packed:
        """The same with another sight in force."""
        return replace(self, sight=sight)

    def first(self) -> Packed:
        """The layout of one token, the first of the full sequence."""
        tokens = replace(self.tokens, marks=None)
        return replace(self, tokens=tokens, index=tokens.index.new_zeros(1), merged=False, moved=False, sight=None)

    def of_tokens(self, tokens: Tokens) -> Packed:
        """The same of tokens of which something else is known."""
        return replace(self, tokens=tokens)

    def patches(self) -> Packed:
        """The same tokens one by one, every patch a token (for parking below the level of the merger)."""
        if self.unit == 1:
            return self
        index = None if self.index is None else self._rows(self.index)
        return replace(self, unit=1, full=self.full * self.unit, tokens=patches_of(self.tokens, self.unit), index=index)

    def without_leading(self, n: int) -> Packed:
        """No special tokens stand before the others."""
        return self
