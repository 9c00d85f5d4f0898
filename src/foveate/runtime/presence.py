"""A method is shown the tokens that are present at a site, with signals read from what the layers before have left.

The sites of the tower and of the language model, those of decode steps and those of a serving engine all ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foveate.errors import UnsupportedSiteError
from foveate.runtime.layout import varied
from foveate.runtime.protocol import Present
from foveate.runtime.signals.kind import Kind, of_units
from foveate.runtime.signals.past import Past
from foveate.runtime.signals.reading import Reading
from foveate.runtime.signals.text import Text
from foveate.runtime.trace import Trace
from foveate.signal import Signals
from foveate.tokens import Tokens

if TYPE_CHECKING:
    from foveate.runtime.context import Action


#: kinds that are of the text tokens, or tell their places
OF_TEXT = ("text", "text_ids", "text_pass", "text_place")


@dataclass
class Presence:
    """The tokens that are present at a site.

    Attributes:
        layout: where the visual ones are.
        hidden: states of all rows; None at a decode step, where there are none of visual tokens.
        past: what was read of earlier layers.
        trace: where the cost of reading is noted.
        samples: packed into a row, each of which has queries of its own; see `foveate.tokens.Spans.sample`.
        text_of: gives the text tokens; None: there are none on this side.
        tower: ``(N, ...)`` what the vision tower has left of these tokens, by its name.
        ahead: reads the attention of the coming layer for some signals.
        tables: gives the rotary tables ``(cos, sin)`` of all rows, ``(B or 1, P, d)`` each, or None.
        join: makes a signal of all heads from that of this process, where each has some.
        pixels: gives the pixel values ``(N, ...)`` of the tokens.
        alone: gives the last hidden states ``(M, C)`` of the text without the images.
    """

    layout: Present
    hidden: Any
    past: Past
    trace: Trace
    samples: int = 1
    text_of: Callable[[], Text] | None = None
    tower: dict[Hashable, Tensor] = field(default_factory=dict)
    ahead: Callable[[Sequence[Kind]], Reading] | None = None
    tables: Callable[[], tuple[Tensor, Tensor] | None] | None = None
    join: Callable[[Kind, Tensor], Tensor] | None = None
    pixels: Callable[[], Tensor] = lambda: torch.empty(0)
    alone: Callable[[], Tensor] = lambda: torch.empty(0)
    _kinds: tuple[Kind, ...] = ()
    _read: list[Reading] = field(default_factory=list)
    _coming: dict[bool, Reading] = field(default_factory=dict)

    def tokens(self, action: Action, **facts: Any) -> Tokens:
        """Return the tokens that the method of ``action`` is shown; ``facts`` are further fields of them."""
        self._kinds = action.asks
        signals = {kind.signal: self._value(kind) for kind in action.asks}
        self.note_cost()
        if any(kind.signal.of == "text" or kind.name in OF_TEXT for kind in action.asks):
            facts["text_counts"] = self.text.counts
        if self.hidden is not None:
            facts["hidden"] = self.pick(self.hidden)
        return varied(self.layout.tokens, signals=Signals(signals), **facts)

    def _value(self, kind: Kind) -> Tensor:
        value = kind.read(self)
        return value if self.join is None or kind.signal.at else self.join(kind, value)

    def heard_in_tower(self, kind: Kind) -> Tensor:
        """What the end of the tower keeps of a signal for the language model, of all heads."""
        value = kind.read_in_tower(self)
        return value if self.join is None else self.join(kind, value)

    # -- what kinds of signals are read from ------------------------------------------------------------------------

    def reading(self, kind: Kind) -> Reading:
        """Return what was read of the attention that a signal is of."""
        reading = self._ahead("unrotated" in kind.needs) if "ahead" in kind.needs else self.past.readings[kind.layer]
        self._read.append(reading)
        return reading

    def _ahead(self, unrotated: bool) -> Reading:
        assert self.ahead is not None, "attach refuses such signals elsewhere"
        if unrotated not in self._coming:
            alike = [kind for kind in self._kinds if "ahead" in kind.needs and ("unrotated" in kind.needs) == unrotated]
            self._coming[unrotated] = self.ahead(alike)
        return self._coming[unrotated]

    def pick(self, x: Tensor) -> Tensor:
        """Hidden states of all rows as tokens ``(N, C)``."""
        return self.layout.pick(x)

    def attended(self, rows: Tensor, side_by_side: bool) -> Tensor:
        """Give the visual tokens ``(N, ...)`` among rows ``(B, P, ...)`` of an attention; of several patches see `of_units`."""
        return of_units(self.layout.attended(rows), self.layout.unit, side_by_side)

    def own_rows(self, reading: Reading, queries: str) -> Tensor:
        """``(N, R, H or 1)`` attention that the queries of that name pay to each visual token, those of its own sample."""
        paid = self.attended(reading.paid(queries), side_by_side=False)
        if self.samples == 1:
            return paid
        paid = paid.view(len(paid), self.samples, -1, paid.shape[-1])
        return paid[torch.arange(len(paid), device=paid.device), self.sample.to(paid.device) % self.samples]

    @property
    def sample(self) -> Tensor:
        """``(N,)`` which sample of the batch each visual token belongs to."""
        return self.layout.tokens.sample

    @property
    def text(self) -> Text:
        """The text tokens."""
        assert self.text_of is not None, "attach refuses signals of the text elsewhere"
        return self.text_of()

    def of_tower(self, kind: Kind) -> Tensor:
        """``(N, ...)`` what a vision block has left of the tokens."""
        if kind.kept_as not in self.tower:
            raise UnsupportedSiteError(
                f"{kind.signal} is asked for, of block {kind.layer}, and the vision tower has not run in this call: the "
                "features came from elsewhere"
            )
        return self.tower[kind.kept_as]

    def note_cost(self) -> None:
        """Note what reading has cost since the last time."""
        self.trace.signal_flops += sum(reading.take_flops() for reading in self._read)

    def rotary(self, *, of_text: bool) -> Tensor:
        """``(N, 2, d)`` cosines and sines of the tokens, or ``(M, 2, d)`` of the text."""
        tables = self.tables() if self.tables is not None else None
        if tables is None:
            raise UnsupportedSiteError(
                "rotary tables are asked for, and stock code gives this layer none of the usual form"
            )
        return torch.stack([self.text.packed(x) if of_text else self.layout.attended(x) for x in tables], dim=1)
