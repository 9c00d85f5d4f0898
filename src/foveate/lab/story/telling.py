"""The walk through a call: its sites in the order of the forward pass, and after each step a frame of every grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from foveate.cost import Report
from foveate.errors import ConfigError, InputError
from foveate.lab.story.steps import Step, place_of, steps_of
from foveate.lab.story.view import ABSENT, DROPPED, WITHDRAWN, Frame, Shape, View
from foveate.ops.segments import offsets
from foveate.runtime.trace import SiteTrace, Trace

Pair = tuple[int, int]


@dataclass(frozen=True)
class Act:
    """What a method did at a step.

    Attributes:
        action: ``reduce``, ``merge``, ``resize``, ``park``, ``restore``, ``hide``, ``skip`` (a part of the layer),
            ``channels``, ``sight``, ``append``, ``reuse``, ``remember``, ``inject``, or ``free`` (from caches, their sum).
        before, after: visual tokens, or patches where ``patches``.
        says: what the method said there, where it was not which tokens survive.
    """

    method: str
    action: str
    before: int
    after: int
    patches: bool
    says: str = ""


@dataclass(frozen=True)
class Story:
    """A call, step by step.

    Attributes:
        steps: every stop, in order: the pixels, the vision blocks, the tower's output, the entry of the language model, its
            layers, the cache.
        frames: every picture that occurs.
        shown: for each step, which of them, one for each grid of tokens there.
        tokens: for each step, the visual tokens that go through it (a fraction where single patches are parked).
        full_tokens: the same in the stock model.
        acts: for each step, what was done there, where it changed anything.
        flops: for each step, FLOPs of it and of the stock model's, where it is a block or layer.
        kv: for each step, tokens in its cache entry and in the stock model's, where it has one.
        rows: prompts that shared the call; FLOPs are of all of them.
    """

    steps: tuple[Step, ...]
    frames: tuple[Frame, ...]
    shown: tuple[tuple[int, ...], ...]
    tokens: tuple[float, ...]
    full_tokens: tuple[int, ...]
    acts: tuple[tuple[Act, ...], ...]
    flops: tuple[Pair | None, ...]
    kv: tuple[Pair | None, ...]
    rows: int


def tell(trace: Trace, report: Report, span: int | None = None) -> Story:
    """The story of a call.

    Args:
        trace, report: of `foveate.Handle.trace` and ``report``, of a call with one tower call (no video beside an image).
        span: which grid, of a call with one for every prompt; None: all of them.
    """
    if not trace.detailed:
        raise InputError(
            "this call was not recorded for pictures: make it inside `with handle.trace() as trace:`, and tell(trace(), ...)"
        )
    blocks, layers = len(report.full_block_flops), len(report.full_layer_flops)
    walk = _Walk(trace, blocks, layers, span)
    for number, step in enumerate(walk.steps):
        walk.go(number, step)
    flops: list[Pair | None] = [None] * len(walk.steps)
    flops[1 : 1 + blocks] = zip(report.block_flops, report.full_block_flops)
    flops[3 + blocks : -1] = zip(report.layer_flops, report.full_layer_flops)
    kv: list[Pair | None] = [None] * len(walk.steps)
    for layer, now, full in zip(trace.kv.layers, trace.kv.lengths, trace.kv.full_lengths):
        kv[3 + blocks + layer] = now, full
    return Story(
        walk.steps,
        tuple(walk.frames),
        tuple(walk.shown),
        tuple(walk.tokens),
        tuple(walk.full),
        tuple(walk.acts),
        tuple(flops),
        tuple(kv),
        trace.prefill[0].batch if trace.prefill else 1,
    )


class _Walk:
    """Grids on their way, and what is noted at each step."""

    def __init__(self, trace: Trace, blocks: int, layers: int, span: int | None) -> None:
        self.trace, self.span, self.blocks = trace, span, blocks
        self.steps = steps_of(blocks, layers)
        self.visits: dict[int, list[SiteTrace]] = {}
        for visit in trace.sites:
            number = place_of(visit.site, blocks) % len(self.steps)
            self.visits.setdefault(number, []).append(visit.of_images())
        at_cache = self.visits.get(len(self.steps) - 1, [])
        self.freed = [visit for visit in at_cache if visit.site.at == "cache"]
        self.visits[len(self.steps) - 1] = at_cache[len(self.freed) :][-1:]  # the last decode step
        tower = self._mine([(h, w) for t, h, w in trace.grid for _ in range(t)])
        self.views = [View(shape, self._fine(i, shape)) for i, shape in enumerate(tower)]
        self.lends = {1 + block.block for block in trace.blocks if block.keys is not None}
        for n, layer in enumerate(trace.prefill):
            keys = None if layer.parts is None else layer.parts.keys
            if keys is not None and keys > layer.batch * layer.queries:
                self.lends.add(3 + blocks + n % layers)
        self.frames: list[Frame] = []
        self.shown: list[tuple[int, ...]] = []
        self.tokens: list[float] = []
        self.full: list[int] = []
        self.acts: list[tuple[Act, ...]] = []
        self.held: list[list[Any]] = []

    def go(self, number: int, step: Step) -> None:
        """One step: its sites act, then everything is noted."""
        if number == 2 + self.blocks:
            self._enter()
        for view in self.views:
            view.skipped[:] = False
        cached = step.stage == "cache"
        acts = (act for visit in self.visits.get(number, []) for act in self._visit(visit))
        self.acts.append((*(self._free() if cached else ()), *acts))
        lends = number in self.lends
        if step.stage == "language" and number > 2 + self.blocks:
            self.held.append([view.owner if lends else np.where(view.parked, -1, view.owner) for view in self.views])
        shares = [np.mean(np.stack(layers) >= 0, axis=0) for layers in zip(*self.held)] if cached and self.held else []
        frames = [view.frame(lends, shares[i] if shares else None) for i, view in enumerate(self.views)]
        self.shown.append(tuple(map(self._number, frames)))
        self.tokens.append(round(self._running(), 2))
        language = step.stage in ("language", "cache")
        grids = self.trace.views if language else self.trace.grid
        self.full.append(sum(h * w for h, w in self._mine([(h, w) for t, h, w in grids for _ in range(t)])))

    def _free(self) -> Iterator[Act]:
        """What left the caches of single layers: an act for each method."""
        for method in dict.fromkeys(visit.method for visit in self.freed):
            for visit in (visits := [visit for visit in self.freed if visit.method == method]):
                held, kept = self.held[visit.site.layer], self._of_spans(visit.index, visit.after)
                held[:] = [np.where(np.isin(owner, few), owner, -1) for owner, few in zip(held, kept)]
            before, after = (sum(sum(self._mine(getattr(v, name))) for v in visits) for name in ("before", "after"))
            yield Act(method, "free", before, after, False)

    def _number(self, frame: Frame) -> int:
        if frame not in self.frames[-2 * len(self.views) :]:
            self.frames.append(frame)
        return len(self.frames) - 1 - self.frames[::-1].index(frame)

    def _mine(self, each: Sequence[Any]) -> list[Any]:
        return list(each) if self.span is None else [each[self.span]]

    def _fine(self, i: int, shape: Shape) -> int:
        """Patches along the side of a token, if they are ever looked at one by one."""
        found = 1
        for visit in self.trace.sites:
            if visit.resized is not None:
                shape = self._mine(visit.resized)[i]
            elif visit.site.unit == "patch":
                found = max(found, self._mine(visit.shapes)[i][0] // shape[0])
        return found

    def _enter(self) -> None:
        """The language model is reached: its numbers of tokens; and where it sees other grids, these, without the holes."""
        grids = self._mine([(h, w) for t, h, w in self.trace.views for _ in range(t)])
        if self.trace.views == self.trace.grid:
            for view in self.views:
                view.in_full()
            return
        self.views = [View(shape) for shape in grids]
        for tokens, reduction in self.trace.arrived:
            index, counts = tokens.index, tokens.counts
            if reduction is not None:
                index, counts = index[reduction.keep], reduction.counts
            for view, kept in zip(self.views, self._of_spans(index, counts)):
                view.reduce([], kept, None, {}, ABSENT)

    def _visit(self, visit: SiteTrace) -> Iterator[Act]:
        site = visit.site
        kept = self._of_spans(visit.index, visit.after)
        present = self._of_spans(visit.index if visit.present is None else visit.present, visit.before)
        groups, places = self._groups(visit), self._places(visit)
        waiting = self._running()
        shapes = self._mine(visit.shapes)
        for i, view in enumerate(self.views):
            if site.action == "restore":
                view.restore()
            elif site.action == "park":
                view.park(kept[i], shapes[i])
            elif site.action == "skip":
                view.skip(kept[i])
            elif visit.resized is not None:
                view.resize(self._mine(visit.resized)[i], kept[i])
            elif site.at == "decode":
                view.hide(kept[i])
            else:
                letter = WITHDRAWN if site.at == "decoder" and site.layer else DROPPED  # has a layer read it?
                view.reduce(present[i], kept[i], groups[i] if groups else None, places[i] if places else {}, letter)
        action = site.action if site.action != "reduce" else _word(visit)
        before, after = (sum(map(len, each)) for each in (present, kept))
        patches = site.unit == "patch"
        if site.action == "restore":  # it may have been patches that were parked
            before, after, patches = round(waiting), round(self._running()), False
        if before != after or visit.says:
            yield Act(visit.method, action, before, after, patches, visit.says)

    def _running(self) -> float:
        return sum(view.tokens() for view in self.views)

    def _of_spans(self, index: Tensor, counts: Sequence[int]) -> list[list[int]]:
        ends, numbers = offsets(counts), index.tolist()
        return self._mine([numbers[a:b] for a, b in zip(ends, ends[1:])])

    def _groups(self, visit: SiteTrace) -> list[list[int]] | None:
        """For each grid and present token, which of the grid's survivors it is part of; one that has joined a token of another
        frame has left its own."""
        if visit.groups is None:
            return None
        n, k = sum(visit.before), sum(visit.after)
        flat = visit.groups()
        if flat.shape != (n,) or (n and not 0 <= int(flat.min()) <= int(flat.max()) <= k):
            raise ConfigError(
                f"{visit.method} at {visit.name}: groups must give {n} numbers from 0 to {k}, one a token"
            )
        starts, numbers = offsets(visit.before), flat.tolist()
        firsts = offsets(visit.after)
        return self._mine(
            [
                [group - firsts[s] if firsts[s] <= group < firsts[s + 1] else visit.after[s] for group in numbers[a:b]]
                for s, (a, b) in enumerate(zip(starts, starts[1:]))
            ]
        )

    def _places(self, visit: SiteTrace) -> list[dict[int, tuple[float, float]]] | None:
        """For each grid, where its survivors are, if some have moved."""
        if visit.coords is None:
            return None
        ends, places = offsets(visit.after), visit.coords[:, 1:].tolist()
        index = visit.index.tolist()
        return self._mine([dict(zip(index[a:b], map(tuple, places[a:b]))) for a, b in zip(ends, ends[1:])])


def _word(visit: SiteTrace) -> str:
    """What a reduction is."""
    if visit.resized is not None:
        return "resize"
    if visit.site.at == "decode":
        return "hide"
    return "reduce" if visit.groups is None else "merge"
