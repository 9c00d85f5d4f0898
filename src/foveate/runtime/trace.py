"""A trace records a call for its report: tokens, attention shapes, cache bytes, times."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foveate.answers import Reuse
from foveate.method import Site
from foveate.tokens import Reduction, Tokens


@dataclass
class BlockTrace:
    """One tower block: rows that entered attention and FFN, and its attention segments."""

    block: int
    rows: int
    ffn_rows: int
    segments: Any  # list of lengths, or the cumulative lengths on the device
    keys: KeyTrace | None = None


@dataclass
class KeyTrace:
    """The keys of a tower block whose attention sees more rows than the block has.

    Attributes:
        rows: keys and values that were computed.
        queries: rows that went through the query projection.
        segments: as those of the block, and as many.
    """

    rows: int
    queries: int
    segments: Any


@dataclass
class LayerTrace:
    """One decoder layer in one forward: batch, queries, keys, the same in the stock model, and visual tokens present.

    `visual` is None where no site of the decoder needs to know. `parts` says what its parts computed, where
    that was not the whole layer for every row; `reuse` what the layer took from an earlier one, and `reused` for how many rows;
    `members` the queries of its attention, where these are more than its rows; `lent` how many visual tokens that are set aside
    lend it keys and values.
    """

    batch: int
    queries: int
    keys: int
    full_queries: int
    full_keys: int
    visual: int | None
    parts: PartTrace | None = None
    reuse: Reuse | None = None
    reused: int = 0
    members: int | None = None
    lent: int = 0


@dataclass
class PartTrace:
    """What the parts of a decoder layer computed for the rows of all the batch; None: the usual.

    Attributes:
        ffn: rows that went through the whole FFN.
        channels: rows that used a part of its channels, how many, and of how many.
        keys: rows that went through the attention's projections of keys and values.
        queries: rows that went through that of the queries and the one after the kernel.
        kernel: queries that the kernel had in each row of the batch.
    """

    ffn: int | None = None
    channels: tuple[int, int, int] | None = None
    keys: int | None = None
    queries: int | None = None
    kernel: int | None = None


@dataclass
class SiteTrace:
    """One visit of a site: visual tokens before and after per span, and what it cost.

    The tensors are those that the site worked with, packed. What pictures alone need is there in a detailed `Trace` only.

    Attributes:
        index: raster indices of the survivors.
        shapes: token grid of each span; of patches, where single patches are parked.
        present: for pictures, raster indices of the tokens before.
        resized, coords, groups: for pictures, as in `Reduction`, where it says so.
        says: what the method says here, where it is not which tokens survive.
        marks: which tokens before, and which survivors, are no token of the image but appended; None: none.
    """

    site: Site
    method: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    flops: int
    index: Tensor
    shapes: tuple[tuple[int, int], ...]
    present: Tensor | None = None
    resized: tuple[tuple[int, int], ...] | None = None
    coords: Tensor | None = None
    groups: Callable[[], Tensor] | None = None
    says: str = ""
    marks: tuple[Tensor, Tensor] | None = None

    def of_images(self) -> SiteTrace:
        """This visit without appended tokens. Finding them synchronises with the device."""
        if self.marks is None:
            return self
        before, after = (_own(each, ~new) for each, new in zip((self.before, self.after), self.marks))
        present = None if self.present is None else self.present[~self.marks[0]]
        index = self.index[~self.marks[1]]
        coords = None if self.coords is None else self.coords[~self.marks[1]]
        return replace(
            self, before=before, after=after, present=present, index=index, coords=coords, groups=None, marks=None
        )

    @property
    def name(self) -> str:
        """The name of the site."""
        return str(self.site)


def visit_of(
    site: Site,
    method: str,
    flops: int,
    tokens: Tokens,
    reduction: Reduction | None = None,
    says: str = "",
) -> SiteTrace:
    """Return the visit of a site where ``reduction`` was decided of ``tokens`` (None: all stay), or something else was said."""
    n, index, marks = tokens.counts, tokens.index, tokens.marks
    new = None if marks is None else (marks, marks)
    visit = SiteTrace(site, method, n, n, flops, index, tokens.spans.shape, index, says=says, marks=new)
    if reduction is None:
        return visit
    keep = reduction.keep
    visit.after, visit.index = reduction.counts, index[keep]
    visit.resized, visit.coords, visit.groups = reduction.shape, reduction.coords, reduction.groups
    visit.marks = None if marks is None else (marks, marks[keep])
    return visit


def _own(counts: tuple[int, ...], own: Tensor) -> tuple[int, ...]:
    return tuple(int(part.sum()) for part in own.cpu().split(counts))


@dataclass
class Weight:
    """The KV cache after a forward.

    Attributes:
        of: the cache, if all of its entries grow by each generated token; else None.
        batch, length: rows, and tokens of the full sequence that it stood for when it was measured.
        grown: tokens that each entry has got since then.
        layers: those whose entries hold tokens.
        measured, stock: tokens in each of these entries when it was measured, and in the stock model's.
        held: bytes of each when it was measured.
        row, visual_row, full_row: bytes of one more token in each, of a visual one, and of one in the stock model.
    """

    of: weakref.ref[Any] | None
    batch: int
    length: int
    grown: int = 0
    layers: list[int] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)
    stock: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    visual_row: list[int] = field(default_factory=list)
    full_row: list[int] = field(default_factory=list)

    def is_of(self, cache: Any, batch: int, length: int) -> bool:
        """Tell whether it is known to be that of a cache that stands for so many rows and tokens of the full sequence."""
        return self.of is not None and self.of() is cache and (self.batch, self.length + self.grown) == (batch, length)

    def add(self, layer: int, measured: int, stock: int, held: int, row: int, visual_row: int, full_row: int) -> None:
        """Add the entry of a layer."""
        for known, value in (
            (self.layers, layer),
            (self.measured, measured),
            (self.stock, stock),
            (self.held, held),
            (self.row, row),
            (self.visual_row, visual_row),
            (self.full_row, full_row),
        ):
            known.append(value)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each entry now."""
        return tuple(n + self.grown for n in self.measured)

    @property
    def full_lengths(self) -> tuple[int, ...]:
        """Tokens in each entry of the stock model now."""
        return tuple(n + self.grown for n in self.stock)

    @property
    def bytes(self) -> int:
        """What the tensors of all entries take."""
        return sum(self.held) + self.grown * sum(self.row)

    @property
    def full_bytes(self) -> int:
        """What those of the stock model would take."""
        return sum(n * row for n, row in zip(self.full_lengths, self.full_row))


@dataclass
class Trace:
    """What the report needs to know about one call: the tower, the prefill, and the decode steps that followed.

    `grid` is what the tower saw, `views` what the language model sees of it, as so many `features`; `segments` are the rows of
    the tower's images with their padding, where there is some, `strays` those of each image that are no token's, and `around`
    the FLOPs of the tower that no site changes. `placeholders` counts, on the device, those of each forward that no site looked
    at (beams repeat them).

    `canvas` are the layers of denoising steps that run beside the language model, and `canvas_flops` what is around them.

    If it is `detailed`, which `Handle.trace` asks for, it also holds what pictures need of the sites, every visit of a decode
    site, and what has `arrived`: the visual tokens that the language model was shown, and which are no holes (None: all), if a
    site or a hole is to be expected.
    """

    detailed: bool = False

    grid: list[tuple[int, int, int]] = field(default_factory=list)
    views: list[tuple[int, int, int]] = field(default_factory=list)
    features: int = 0
    placeholders: list[Tensor] = field(default_factory=list)
    blocks: list[BlockTrace] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    around: int = 0
    full_around: int = 0
    merger_rows: list[int] = field(default_factory=list)  # that were shown to it, in each call
    strays: list[int] = field(default_factory=list)
    patch_rows: int = 0
    full_patch_rows: int = 0
    output_rows: int = 0
    full_output_rows: int = 0
    tap_rows: list[tuple[int, int]] = field(default_factory=list)  # (which tap, tokens)
    sites: list[SiteTrace] = field(default_factory=list)
    arrived: list[tuple[Tokens, Reduction | None]] = field(default_factory=list)
    prefill: list[LayerTrace] = field(default_factory=list)
    decode: list[LayerTrace] = field(default_factory=list)
    canvas: list[LayerTrace] = field(default_factory=list)
    canvas_flops: int = 0
    decode_steps: int = 0
    head_rows: int = 0
    kv: Weight = field(default_factory=lambda: Weight(None, 0, 0))
    clocks: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    signal_flops: int = 0
    asides: list[tuple[int, int]] = field(
        default_factory=list
    )  # (batch, length) that the language model ran on for a signal
    thread: str = field(default_factory=lambda: threading.current_thread().name)  # that made the call

    def add(self, visit: SiteTrace) -> None:
        """Note a visit of a site; of a decode site, in place of the one at the step before, unless pictures are asked for."""
        if self.detailed:
            self.sites.append(visit)
            return
        visit.present = visit.resized = visit.coords = visit.groups = None
        last = self.sites[-1] if visit.site.at == "decode" and self.sites else None
        if last is not None and (last.site, last.method) == (visit.site, visit.method):
            visit.flops += last.flops
            self.sites[-1] = visit
        else:
            self.sites.append(visit)

    def seconds(self, stage: str) -> float:
        """Wall time spent in a stage (device time on CUDA)."""
        return sum(_elapsed(start, stop) for start, stop in self.clocks.get(stage, []))


class Clock:
    """A clock that runs from when it is made, where ``device`` is."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.start = device, tick(device)

    def stop(self) -> tuple[Any, Any]:
        """Return the points in time when the clock was made, and now."""
        return self.start, tick(self.device)


def tick(device: torch.device) -> Any:
    """Return a point in time: an event on CUDA (no synchronisation), a clock reading elsewhere."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))  # not that of the device that is current
        return event
    return time.perf_counter()


def _elapsed(start: Any, stop: Any) -> float:
    if isinstance(start, float):
        return float(stop - start)
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3
