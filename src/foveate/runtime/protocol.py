"""What layouts have in common: those of padded batches (`foveate.runtime.layout`) and of packed sequences
(`foveate.runtime.packed`). Whoever works on both asks them, and never which of the two it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from foveate.tokens import Reduction, Tokens

if TYPE_CHECKING:
    from typing_extensions import Self

    from foveate.answers import Sight
    from foveate.runtime.growing import New


class Present(Protocol):
    """Where visual tokens are."""

    @property
    def tokens(self) -> Tokens:
        """Those present."""

    @property
    def unit(self) -> int:
        """Rows that are one token."""

    def pick(self, x: Tensor) -> Tensor:
        """Hidden states as tokens ``(N, unit * C)``; special rows may stand before those of the layout."""

    def attended(self, x: Tensor) -> Tensor:
        """Of rows ``(B, P, ...)`` of an attention, the visual ones, packed: ``(N * unit, ...)``."""


class Layout(Present, Protocol):
    """The map from the tokens present now to the full sequence."""

    @property
    def index(self) -> Tensor | None:
        """The place of each in the full sequence; None: nothing was removed."""

    @property
    def valid(self) -> Tensor | None:
        """False for padding; None: there is none."""

    @property
    def full(self) -> int:
        """Length of the full sequence."""

    @property
    def width(self) -> int:
        """Rows present, of a batch in each of its rows."""

    @property
    def n_rows(self) -> int:
        """The same of all the batch."""

    @property
    def sight(self) -> Sight | None:
        """Who may attend to whom, with the group of each token; None: all may."""

    @property
    def merged(self) -> bool:
        """Some token stands for several."""

    @property
    def moved(self) -> bool:
        """Some token is not at its own place."""

    def reduce(self, reduction: Reduction) -> tuple[Self, Tensor | None]:
        """Give the layout of the survivors, and which rows of hidden states are theirs (`foveate.runtime.layout.take_rows`)."""

    def put(self, x: Tensor, values: Tensor) -> Tensor:
        """Rows ``x`` with tokens ``(N, unit * C)`` in the place of the visual ones."""

    def per_row(self, values: Tensor) -> Tensor:
        """Values ``(N, k)`` of tokens for every row."""

    def of_full(self, x: Tensor, axis: int) -> Tensor:
        """Those of the full sequence's rows ``x``, which stand along ``axis``, that are present."""

    def seqlens(self, cu_seqlens: Tensor) -> Tensor:
        """Cumulative lengths of attention segments, of the rows present."""

    def table(self) -> tuple[Tensor, Sequence[tuple[int, int]]]:
        """Tell which rows of the rotary tables are present, and two steps among them, one patch down and one to the right."""

    def pairs(self, shown: Self) -> tuple[tuple[int, int], ...]:
        """Rows of each image, and those that an attention is ``shown`` of it, where a mask keeps images apart."""

    def scatter(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Rows back at their places in the full sequence, ``fill`` elsewhere."""

    def places(self, tokens: Tensor) -> Tensor:
        """``(K, unit or 1)`` where ``tokens (K,)`` of a complete layout are in the full sequence."""

    def grown(self, new: New) -> tuple[Self, Tensor, Tensor]:
        """The layout with new tokens; for each of its rows (as `take_rows` has it), and of its tokens, which of the old ones it
        is, and after them of the new ones."""

    def beside(self, x: Tensor, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows ``x`` and behind them those of new tokens ``rows (M, unit * C)``, so many of each span."""

    def of_sight(self, sight: Sight | None) -> Self:
        """The same with another sight in force."""

    def first(self) -> Self:
        """The layout of the first token of a full sequence, for an attention that none is left for."""

    def of_tokens(self, tokens: Tokens) -> Self:
        """The same of tokens of which something else is known."""

    def patches(self) -> Self:
        """The same tokens one by one, every patch a token."""

    def without_leading(self, n: int) -> Self:
        """The same after the first ``n`` rows of every image were cut off."""
