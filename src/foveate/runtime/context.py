"""State of the calls in flight, per thread and per handle. Nothing here outlives a call but its trace."""

from __future__ import annotations

import functools
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from foveate.answers import Answer
from foveate.method import Method, Site
from foveate.runtime.arrange import Arranged, Order
from foveate.runtime.cache import KVIndex
from foveate.runtime.calls import Calls
from foveate.runtime.checks import check_members, check_pools, check_shapes, flops_of, watched
from foveate.runtime.ffn import Split
from foveate.runtime.images import Images
from foveate.runtime.layout import Rows, varied
from foveate.runtime.members import Members
from foveate.runtime.memo import Memo
from foveate.runtime.parking import Attending, Lot
from foveate.runtime.prompt import Ending, Inputs, Prompt
from foveate.runtime.protocol import Layout
from foveate.runtime.queries import Queries
from foveate.runtime.samples import Samples
from foveate.runtime.signals.kind import Kind
from foveate.runtime.signals.past import Past
from foveate.runtime.signals.reading import Reading
from foveate.runtime.signals.text import Text
from foveate.runtime.state import Begun, States
from foveate.runtime.steady import Cut
from foveate.runtime.taken import Taken
from foveate.runtime.trace import Clock, LayerTrace, Trace, visit_of
from foveate.tokens import Reduction, Tokens

if TYPE_CHECKING:
    from foveate.runtime.memory import Encoding
    from foveate.runtime.recalling import Tape


@dataclass(frozen=True)
class Action:
    """A method at one of its sites, with the layer resolved."""

    site: Site
    method: Method
    order: int  # rank among all actions of the handle: names the method's memory
    part: int = 0  # rank of the method in the sum
    asks: tuple[Kind, ...] = ()  # its signals
    #: actions of the same part directly before this one: what was there before each of these is its history
    after: int = 0
    #: where what it remembers is kept, or what it injects is taken from (`foveate.runtime.remembering`)
    memory: str = ""
    _asked: set[bool] = field(default_factory=set, compare=False, repr=False)  # not empty once it has answered

    def ask(self, tokens: Tokens) -> tuple[Answer, bool]:
        """Return what the method says at its site, and whether the values of that are to be checked as well as the shapes."""
        look = watched(self.method, tokens, first=not self._asked)
        own = tokens.history[len(tokens.history) - self.after :] if self.after else ()
        check_pools(self.method, self.site, tokens)
        try:
            shown = varied(tokens, strict=look, history=own, scope=self.method.scope, pooled=self.method.pooled)
            answer = self.method.answer(shown, self.site)
        except Exception as error:
            asked = "remember" if self.site.action == "remember" else "reduce"
            self.name_in(error, asked if type(self.method).answer is Method.answer else "answer")
            raise
        self._asked.add(True)
        return answer, look

    def name_in(self, error: Exception, function: str) -> None:
        """Say in an error which function of the method has raised it."""
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"(raised by {type(self.method).__name__}.{function} at {self.site})")

    def answer(self, tokens: Tokens) -> Reduction:
        """Return the reduction that the method decides on at its site, checked."""
        answer, look = self.ask(tokens)
        reduction = check_shapes(self.method, self.site, tokens, answer)
        if look:
            check_members(self.method, self.site, tokens, reduction)
        return reduction

    def decide(self, trace: Trace, tokens: Tokens) -> Reduction:
        """The same, and noted."""
        reduction = self.answer(tokens)
        self.note(trace, tokens, reduction)
        return reduction

    def note(self, trace: Trace, tokens: Tokens, reduction: Reduction | None = None, says: str = "") -> None:
        """Note a visit of the site: what survives (None: every token), or what else is said there (`SiteTrace`)."""
        flops = flops_of(self.method, tokens, self.site)
        trace.add(visit_of(self.site, self.method.name(), flops, tokens, reduction, says))


@dataclass(eq=False)
class Record:
    """What the tower produced in one call: the only knowledge of spans there is, since ``generate()`` hands over
    features alone. Rows are those of the features, in order.

    Attributes:
        order: what each row stands for, in the grid of the language model.
        hole: ``(R,)`` bool, the rows whose token has left; None: there are none.
        sizes, coords: of every cell of that grid, ``(N,)`` and ``(N, 3)``; None where nothing was merged, or nothing moved.
        pixels: the argument whose images these are, once the function that encodes them has returned; "" before that.
        parts: the features that stock code was given, in pieces.
        consumed: a language-model forward has used it; the next tower call starts a new prompt.
        seen: tokens per (action, row, clip) that earlier chunks of the prompt brought to a site.
        progress: feature row where each batch row goes on, once chunked prefill has met it.
        numbers: of spans and of videos, by kind, batch row, and which of the record's they are.
        block_states: ``(cells, ...)`` what vision blocks have left, by its name, where sites of the language model ask.
        home: ``(N,)`` the cell that each cell has become part of, -1: none; None where nobody wants to know.
        stored: of each image or frame ``(L, m, C)`` what decoder layers are given of the tokens appended to it, where that is
            what was kept of it (`foveate.runtime.recalling`); else empty.
    """

    order: Order
    hole: Tensor | None
    sizes: Tensor | None
    coords: Tensor | None
    pixels: str = ""
    parts: tuple[Tensor, ...] = ()
    consumed: bool = False
    seen: dict[tuple[int, int, int], int] = field(default_factory=dict)
    progress: dict[int, int] = field(default_factory=dict)
    numbers: dict[tuple[str, int, int], int] = field(default_factory=dict)
    block_states: dict[Hashable, Tensor] = field(default_factory=dict)
    home: Tensor | None = None
    stored: Sequence[Tensor] = ()

    @functools.cached_property
    def features(self) -> Tensor:
        """``(R, C)``: all rows, marks and all."""
        return torch.cat(self.parts)

    @functools.cached_property
    def brought(self) -> list[int]:
        """Tokens of each image or video, an entry of the grid, that are no holes. This asks the device once."""
        there = self.order.patch >= 0
        there = self.order.patch[there if self.hole is None else there & ~self.hole.cpu()]
        ends = torch.tensor([t * h * w for t, h, w in self.order.grid]).cumsum(0)
        per_clip = torch.bincount(torch.searchsorted(ends, there, right=True), minlength=len(ends))
        return [int(n) for n in per_clip]


@dataclass(frozen=True, eq=False)
class Running:
    """What the tower block that runs now is told.

    Attributes:
        reading: what is read from its attention.
        attending: how that sees tokens that are set aside, or None: it does not.
        masks: of its attention, by the name of its argument, where blocks do not pass them on.
        mid: hidden states between attention and FFN, and the shape that stock code expects.
    """

    reading: Reading | None = None
    attending: Attending | None = None
    masks: Mapping[str, Tensor | None] = field(default_factory=dict)
    mid: tuple[Tensor, Any] | None = None


@dataclass
class TowerPass:
    """One call of the tower.

    Attributes:
        full, now: its images as the caller gave them, and as the blocks see them.
        clock: when it began.
        layout: tokens present, once a site has acted.
        lot: tokens set aside, or None.
        block: of the block that runs now.
        seen: what blocks so far have left for sites that ask.
        home: ``(U,)`` the cell that each cell has become part of, where merged tokens stand for their members.
    """

    full: Images
    now: Images
    trace: Trace
    clock: Clock
    layout: Layout | None = None
    lot: Lot[Layout] | None = None
    block: Running = field(default_factory=Running)
    seen: Past = field(default_factory=Past)
    memo: Memo = field(default_factory=Memo)
    home: Tensor | None = None


class Given(NamedTuple):
    """What stock code passes to a layer of a step, a ``mask`` and rotary ``tables``, and what is ``changed`` for that."""

    mask: Any
    tables: Any
    changed: dict[str, Any]


@dataclass(eq=False)
class Settled:
    """What is known of a layer of a step before it runs: one object for all layers whose cache entries hold the same.

    Attributes:
        keys: what its attention sees of the cache, or None: all of the sequence.
        entry: its cache entry, or the first one that holds the same; None: there is none.
        all: its token sees every key that it is given, at the positions of the stock model.
        note: of it, for the trace.
        cut: what its mask keeps, if nothing but that changes and the token does not see all; else None.
        given: what the last of these layers was given, or None: none has run whose arguments change.
    """

    keys: KVIndex | None
    entry: Any
    all: bool
    note: LayerTrace
    cut: Cut | None
    given: Given | None = None


@dataclass
class DecoderPass:
    """One forward of the language model.

    Attributes:
        batch, length, past: rows, tokens of the full sequence that this forward brings, tokens cached before.
        layout: what is present, with the visual tokens; None when this forward brings none.
        complete: the same of all visual tokens that it brings, holes and all.
        arrived: the visual tokens that are no holes, to be taken at the first layer.
        deepstack: for layer 0, 1, ... what is added to the visual tokens after it, ``(visual tokens, C)``, holes and all.
        lot: tokens set aside, or None.
        queries, ffn: of the layer that runs now, where its attention or its FFN does not work on all rows alike.
        added: of that layer, what is added to the output of its FFN, and to which rows of the flattened batch.
        rank: ``(B, L)`` which row of ``deepstack`` a visual token has.
        ids: ``(B, L)`` token ids that the model was given, or None.
        records, names: of the tower; ``(record, row, clip)`` of each span, when the prompt comes in chunks.
        frames: which image or frame of the records each span is; (): there are none.
        recalled: ``(L, M, C)`` what each layer is given of the appended tokens, where they come from a memory.
        present: ``(B, L)`` the prompt without its padding, or None.
        samples: what is packed into each row, and where its last tokens are.
        position_ids: ``(A, B, L)`` that the rotary embedding was given, if positions are renumbered.
        seen: what layers so far have left for sites that ask.
        tower: ``(N, ...)`` what the tower has left of the visual tokens, by its name, for sites that ask.
        ahead: what is read of the attention of a layer that runs for that alone, or None.
        keys: layer -> what its attention sees, and the layout that it ran on, for layers that attend to the same.
        rows: with how many of the last rows of the sequence stock code goes on, or None: all.
        choices: decode site -> which visual tokens this step sees.
        states: what methods remember of this prompt, and of what the cache holds.
        ending: what cache sites must know.
        reusing: layer -> what it takes from an earlier one in this forward, until it has.
        members: who stands for whom, where merged tokens stand for their members; else None.
        left: input of the attention that runs now, of the tokens that are left, where it is shown their members.
        lent: layer -> the queries and keys that its kernel was given, for layers that reuse them.
        settled: what is known of layers of a step before they run, the first ones when it begins.
        cache: of a step whose layers are settled as far as can be, else None.
        embeds: ``(B, L, C)`` what the language model was given, where a site asks what it makes of the text alone.
        ready: all that hooks inside of the model would do was done where the whole model is called (`foveate.runtime.ready`).
        prompt, step: of a denoising step: what it is a part of, where it runs all of the prompt, and which step it is.
    """

    batch: int
    length: int
    past: int
    trace: Trace
    start: Any
    layout: Rows | None = None
    complete: Rows | None = None
    arrived: Reduction | None = None
    deepstack: Sequence[Tensor] = ()
    rank: Tensor | None = None
    records: list[Record] = field(default_factory=list)
    names: list[tuple[int, int, int]] | None = None
    frames: tuple[int, ...] = ()
    recalled: Tensor | None = None
    ids: Tensor | None = None
    present: Tensor | None = None
    samples: Samples | None = None
    position_ids: Tensor | None = None
    lot: Lot[Rows] | None = None
    queries: Queries | None = None
    ffn: Split | None = None
    added: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    seen: Past = field(default_factory=Past)
    tower: dict[Hashable, Tensor] = field(default_factory=dict)
    ahead: Reading | None = None
    keys: dict[int, tuple[KVIndex | None, Rows | None]] = field(default_factory=dict)
    rows: int | None = None
    choices: dict[int, tuple[Reduction, int]] = field(default_factory=dict)
    states: States = field(default_factory=States)
    ending: Ending = field(default_factory=Ending)
    reusing: dict[int, Taken] = field(default_factory=dict)
    lent: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    members: Members | None = None
    left: Tensor | None = None
    settled: dict[int, Settled] = field(default_factory=dict)
    cache: Any = None
    embeds: Tensor | None = None
    ready: bool = False
    prompt: Prompt | None = None
    step: int = 0
    memo: Memo = field(default_factory=Memo)

    def note(self, action: Action, counts: Sequence[int]) -> None:
        """Note that so many tokens of each span came to a site: chunks of the prompt that follow shall know."""
        for (m, row, clip), n in zip(self.names or [], counts):
            key = (action.order, row, clip)
            self.records[m].seen[key] = self.records[m].seen.get(key, 0) + n

    @property
    def reduced(self) -> Rows | None:
        """The layout, if something is missing from it."""
        return self.layout if self.layout is not None and self.layout.index is not None else None

    @property
    def attended(self) -> Rows | None:
        """What attention sees of this forward: the tokens present, or the members that they stand for."""
        return self.layout if self.members is None else self.members.outer

    @property
    def fewer(self) -> Rows | None:
        """The same, if something is missing from it."""
        return self.attended if self.attended is not None and self.attended.index is not None else None

    def _slots(self, layout: Rows, places: Tensor) -> Tensor:
        """Where tokens of text are among the rows of a layout, ``(B, ...)``; -1 where there is none."""
        if layout.index is None:
            return places
        where = self.memo.once("slots", (layout,), layout.slots)
        return torch.where(places < 0, -1, where.gather(1, places.clamp(min=0)))

    def text(self) -> Text:
        """Return the text tokens that are present."""
        assert self.layout is not None, "of a forward with images"
        return self.text_in(self.layout)

    def text_in(self, layout: Rows) -> Text:
        """Return the text tokens of a layout, which may be that of attention (`attended`)."""
        samples = self.samples
        assert samples is not None
        return self.memo.once(
            "text", (layout,), lambda: Text(layout, samples, self.real(layout), partial(self._slots, layout), self.ids)
        )

    def sizes(self, layout: Rows | None) -> Tensor | None:
        """``(B, S)``: tokens of each sample that are in a layout; None: a row is a sample."""
        if self.samples is None or not self.samples.several or layout is None:
            return None
        real = self.real(layout)
        if real is None:
            real = torch.ones(self.batch, layout.width, dtype=torch.bool, device=layout.row.device)
        return self.samples.count(layout.index, real)

    def real(self, layout: Rows | None) -> Tensor | None:
        """``(B, P)`` bool: tokens of a layout that are no padding, neither the prompt's nor ours; None: all."""
        return self.present if layout is None or layout.index is None else layout.valid


class Context(threading.local):
    """Calls in flight in this thread, and ``calls`` of all of them."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.tower: TowerPass | None = None
        self.records: list[Record] = []
        self.inputs: Inputs | None = None
        self.decoder: DecoderPass | None = None
        self.canvas: DecoderPass | None = None
        self.aside = False  # the language model runs for ourselves
        self.arranged: Arranged | None = None
        self.prompt: Prompt | None = None
        self.encoded: tuple[list[Encoding], int | None] = ([], None)  # of the last call of one, and its form
        self.tape: Tape | None = None  # where images are encoded for what decoder layers make of them
        self.stored: dict[
            tuple[int, int], Sequence[Tensor]
        ] = {}  # of images in memories of this call, by encoding and start
        self.encoding: list[str] = []  # pixel arguments whose functions run now, one inside the other
        self.trace = self.new_trace()
        self.begun = Begun()

    def new_trace(self) -> Trace:
        """The trace of a call that begins, as detailed as is wanted now."""
        return Trace(detailed=self.calls.tracing > 0)


def wants_gradients(actions: Sequence[Action], layer: nn.Module) -> bool:
    """Whether what is read in a layer carries gradients: for methods that are trained, where no checkpoint runs it again."""
    again = layer.training and getattr(layer, "gradient_checkpointing", False)
    return not again and any(not action.method.training_free for action in actions)
