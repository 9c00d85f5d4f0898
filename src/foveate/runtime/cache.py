"""KV cache entries that hold fewer tokens than they stand for.

An entry that a reduction reaches is replaced by one of a class that mixes `CompactMixin` with what it was (dynamic,
sliding, quantised, offloaded ...) and takes over its state, so everything that its own class does stays in force.
`get_seq_length()` answers for the full sequence, which is what the stock model asks about; `KVIndex` knows what is
physically there.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from foveate.errors import UnsupportedCacheError
from foveate.ops.segments import offsets
from foveate.runtime.layout import Rows, varied
from foveate.runtime.lent import Lent
from foveate.runtime.masks import View
from foveate.runtime.sight import Groups, groups_of, joined
from foveate.runtime.slots import LastSlots, Shown, Slots, same
from foveate.tokens import Spans, Tokens

if TYPE_CHECKING:
    from foveate.runtime.state import States


@dataclass(frozen=True, eq=False)
class KVIndex:
    """What a cache entry holds: a prefix with an index, then ``tail`` tokens that follow one another.

    Attributes:
        total: tokens of the full sequence, ``T``.
        tail: tokens at the end that are all there, in every row.
        index: ``(B, P - tail)`` positions of the others in the full sequence, or None: all of them are there.
        valid: ``(B, P - tail)`` bool, or None: no padding of ours.
        shift: ``(B,)`` how much smaller position ids are than in the stock model (renumbering), or None.
        visual: the visual tokens and their slots, kept only where sites of the cache ask for them.
        groups: of the visual tokens, where a method has said who may see them, or None.
    """

    total: int
    tail: int
    index: Tensor | None = None
    valid: Tensor | None = None
    shift: Tensor | None = None
    visual: Rows | None = None
    groups: Groups | None = None
    _made: dict[str, tuple[Any, KVIndex, int]] = field(default_factory=dict, repr=False)
    _shown: list[Shown] = field(default_factory=list, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}, "_shown": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def shown(self) -> Shown | None:
        """What the step that has led here was shown of it, if a decode site has chosen."""
        return self._shown[-1] if self._shown else None

    def show(self, shown: Shown) -> None:
        """Note that, for the step that comes next."""
        self._shown[:] = [shown]

    @property
    def at_home(self) -> bool:
        """Whether a generated token sees all that is held and is no padding, at the positions of the stock model."""
        return self.groups is None and self.shift is None

    @property
    def plain(self) -> bool:
        """The same, and there is no padding of ours."""
        return self.valid is None and self.at_home

    @property
    def whole(self) -> bool:
        """Whether every token of the full sequence is held, in its place, and all may see it."""
        return self.index is None and self.tail == self.total and self.groups is None

    @property
    def length(self) -> int:
        """Tokens physically held, ``P``."""
        return self.tail + (0 if self.index is None else self.index.shape[1])

    def view(self, batch: int, device: torch.device) -> View:
        """All positions ``(B, P)`` with their validity."""
        tail = torch.arange(self.total - self.tail, self.total, device=device).expand(batch, -1)
        if self.index is None:
            return View(tail, None)
        valid = self.valid
        if valid is not None:
            valid = torch.cat([valid, valid.new_ones(batch, self.tail)], dim=1)
        return View(torch.cat([self.index, tail], dim=1), valid)

    def append(self, n: int) -> KVIndex:
        """After a forward whose ``n`` tokens all arrived."""
        known = self._made.get("append")  # layers that hold the same share one object: what is made of it is made once
        if known is None or known[0] != n:
            new = varied(self, total=self.total + n, tail=self.tail + n, _made={}, _shown=[])
            known = self._made["append"] = (n, new, n)
        return known[1]

    def append_rows(self, rows: Rows, shift: Tensor | None, keep_visual: bool) -> KVIndex:
        """After a forward that arrived as ``rows``."""
        batch, device = len(rows.lengths), rows.row.device
        groups, visual = joined(self.groups, groups_of(rows), self.length), None
        if keep_visual:
            new = replace(
                rows, slot=rows.slot + self.length, width=rows.width + self.length, place=None, sight=None, bias=None
            )
            visual = new if self.visual is None else _joined(self.visual, new)
        if rows.index is None:
            same_rows = self.append(rows.full)
            return replace(same_rows, shift=shift, visual=visual, groups=groups, _made={}, _shown=[])
        old = self.view(batch, device)
        index = torch.cat([old.index, rows.index + self.total], dim=1)
        valid = None
        if old.valid is not None or rows.valid is not None:
            here = torch.ones_like(rows.index, dtype=torch.bool) if rows.valid is None else rows.valid
            before = torch.ones_like(old.index, dtype=torch.bool) if old.valid is None else old.valid
            valid = torch.cat([before, here], dim=1)
        return KVIndex(self.total + rows.full, 0, index, valid, shift, visual, groups)

    def last(self, n: int) -> KVIndex:
        """Only the last ``n`` entries (sliding windows)."""
        cut = self.length - n
        if cut <= 0:
            return self
        groups = None if self.groups is None else self.groups.after(cut)
        if self.index is None or n <= self.tail:
            return KVIndex(self.total, n, shift=self.shift, groups=groups)
        valid = None if self.valid is None else self.valid[:, cut:]
        return KVIndex(self.total, self.tail, self.index[:, cut:], valid, self.shift, groups=groups)

    def crop(self, remove: int) -> tuple[KVIndex, int]:
        """Without the last ``remove`` tokens of the full sequence, and how many entries that frees in every row."""
        known = self._made.get("crop")
        if known is None or known[0] != remove:
            known = self._made["crop"] = (remove, *self._cropped(remove))
        return known[1:]

    def _cropped(self, remove: int) -> tuple[KVIndex, int]:
        if remove <= self.tail:
            groups = self._groups_up_to(self.length - remove)
            left = replace(self, total=self.total - remove, tail=self.tail - remove, groups=groups, _made={}, _shown=[])
            return left, remove
        assert self.index is not None, "an entry without an index is all tail"
        total = self.total - remove
        gone = self.index >= total if self.valid is None else (self.index >= total) | ~self.valid
        # Rows may lose different numbers: only what all of them lose is freed, the rest becomes padding.
        freed = int(gone.flip(1).long().cumprod(1).sum(1).min())
        width = self.index.shape[1] - freed
        valid = None if not bool(gone[:, :width].any()) else ~gone[:, :width]
        groups = self._groups_up_to(width)
        return KVIndex(total, 0, self.index[:, :width], valid, self.shift, groups=groups), freed + self.tail

    def _groups_up_to(self, length: int) -> Groups | None:
        return None if self.groups is None else self.groups.up_to(length)

    def take(self, take: Tensor, rows: Rows) -> KVIndex:
        """Only the entries ``take (B, P')`` of each row, which are now laid out as ``rows``."""
        groups = None if self.groups is None else self.groups.up_to(self.length).taken(take)
        left = replace(rows, index=None, valid=None)
        return KVIndex(self.total, 0, rows.index, rows.valid, self.shift, left, groups)

    def ordered(self, take: Tensor) -> KVIndex:
        """The same entries in the order ``take (B, P)``, which leaves those after the visual tokens where they are."""
        assert self.visual is not None
        view, visual = self.view(len(take), take.device), self.visual
        now = torch.empty_like(take).scatter_(1, take, torch.arange(take.shape[1]).expand_as(take))
        tail = min(self.tail, self.length - 1 - int(visual.slot.max()))
        index, valid = (
            None if x is None else x.gather(1, take)[:, : self.length - tail] for x in (view.index, view.valid)
        )
        moved = varied(visual, slot=now[visual.row, visual.slot])
        return KVIndex(self.total, tail, index, valid, self.shift, moved, self.groups)

    def select(self, rows: Tensor) -> KVIndex:
        """The entry for rows ``rows (B',)`` of the batch (beam search, expansion)."""
        known = self._made.get("select")
        if known is not None and (known[0] is rows or same(known[0], rows)):
            return known[1]
        groups, visual, picked = None if self.groups is None else self.groups.of_rows(rows), None, None
        if self.visual is not None:
            visual, picked = _select_rows(self.visual, [int(row) for row in rows.tolist()])
        index, valid, shift = (_of_rows(x, rows) for x in (self.index, self.valid, self.shift))
        new = KVIndex(self.total, self.tail, index, valid, shift, visual, groups)
        if (
            self.shown is not None and picked is not None and picked.device.type == "cpu"
        ):  # (others would be waited for)
            new.show(self.shown.of_rows(rows, picked))
        self._made["select"] = (rows, new, 0)
        return new


def _of_rows(x: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if x is None else x.index_select(0, rows.to(x.device))


def of_spans(tokens: Tokens, chosen: Sequence[int], rows: Sequence[int]) -> tuple[Tokens, Tensor]:
    """Return the tokens of the ``chosen`` spans, now in batch ``rows``, and which of all tokens they are, ``(K,)``."""
    spans, ends = tokens.spans, offsets(tokens.counts)
    device = tokens.index.device
    parts = [torch.arange(ends[s], ends[s + 1]) for s in chosen]
    keep = torch.cat([torch.empty(0, dtype=torch.long), *parts]).to(device, non_blocking=True)
    new = Spans(
        shape=tuple(spans.shape[s] for s in chosen),
        clip=tuple(spans.clip[s] for s in chosen),
        frame=tuple(spans.frame[s] for s in chosen),
        row=tuple(rows),
        number=tuple(spans.number[s] for s in chosen),
    )
    return replace(tokens.select(keep, tuple(tokens.counts[s] for s in chosen)), spans=new, history=()), keep


def _select_rows(layout: Rows, rows: list[int]) -> tuple[Rows, Tensor]:
    """Return the visual tokens of a layout for a new choice of batch rows, and which they were, ``(N',)``."""
    spans = layout.tokens.spans
    chosen = [(new, s) for new, old in enumerate(rows) for s in range(len(spans)) if spans.row[s] == old]
    picked, keep = of_spans(layout.tokens, [s for _, s in chosen], [new for new, _ in chosen])
    row = torch.tensor(picked.spans.row, dtype=torch.long, device=keep.device)[picked.segment]
    lengths = tuple(layout.lengths[r] for r in rows)
    return replace(layout, tokens=picked, row=row, slot=layout.slot[keep], lengths=lengths), keep


def _joined(first: Rows, second: Rows) -> Rows:
    """Visual tokens of two turns, or of two chunks of a prompt, which may share a span; row after row."""
    tokens, perm = joined_tokens(first.tokens, second.tokens)
    row, slot = torch.cat([first.row, second.row])[perm], torch.cat([first.slot, second.slot])[perm]
    return replace(second, tokens=tokens, row=row, slot=slot)


def joined_tokens(a: Tokens, b: Tokens) -> tuple[Tokens, Tensor]:
    """The same of tokens, without signals; and ``(N,)`` which of those of ``a`` and then ``b`` each is."""
    spans, place = a.spans, {key: s for s, key in enumerate(zip(a.spans.row, a.spans.number))}
    new = [s for s, key in enumerate(zip(b.spans.row, b.spans.number)) if key not in place]
    place |= {(b.spans.row[s], b.spans.number[s]): len(spans) + i for i, s in enumerate(new)}
    spans = Spans(
        shape=spans.shape + tuple(b.spans.shape[s] for s in new),
        clip=spans.clip + tuple(b.spans.clip[s] for s in new),
        frame=spans.frame + tuple(b.spans.frame[s] for s in new),
        row=spans.row + tuple(b.spans.row[s] for s in new),
        number=spans.number + tuple(b.spans.number[s] for s in new),
    )
    of_b = [place[key] for key in zip(b.spans.row, b.spans.number)]
    counts = [*a.counts, *(0 for _ in new)]
    for s, n in zip(of_b, b.counts):
        counts[s] += n
    segment = torch.cat([a.segment, torch.tensor(of_b, dtype=torch.long, device=b.index.device)[b.segment]])
    by_span = torch.argsort(segment, stable=True)
    joined = replace(
        b,
        spans=spans,
        counts=tuple(counts),
        index=torch.cat([a.index, b.index])[by_span],
        sizes=torch.cat([a.sizes, b.sizes])[by_span],
        coords=torch.cat([a.coords, b.coords])[by_span],
        hidden=torch.cat([a.hidden, b.hidden])[by_span] if b.hidden.dim() > 1 else b.hidden,
        signals={},
        marks=None if a.marks is None and b.marks is None else torch.cat([a.appended, b.appended])[by_span],
    )
    order = sorted(range(len(spans)), key=lambda s: spans.row[s])
    tokens, perm = of_spans(joined, order, [spans.row[s] for s in order])
    return tokens, by_span[perm]


class CompactMixin:
    """A cache entry that answers for the full sequence. Mixed over the entry's own class by `compact`."""

    keys: Tensor
    values: Tensor
    kv: KVIndex
    visible: Slots | LastSlots | None  # the slots that this decode step may see, or None: all
    states: States | None  # what methods remember with this cache: one of its entries carries it
    reuses: tuple[bool, ...] = ()  # rows of which all tokens have come with another layer's queries or keys; (): none
    lent: Lent | None = None  # which of its keys are in another layer's entry alone; None: none
    coming: KVIndex | None  # what it will hold after the next update, which the runtime has announced; None: it has not
    is_sliding: bool
    is_initialized: bool
    sliding_window: int
    record_past: bool

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.coming is None or (self.lent is not None and self.lent.mask.shape[1] != self.coming.length):
            raise UnsupportedCacheError(
                "this cache was filled under a foveate handle and holds fewer tokens than the model believes, or no keys: go "
                "on with it while the method is attached, or start with a new cache"
            )
        self.kv, self.coming = self.coming, None
        keys, values = super().update(key_states, value_states, *args, **kwargs)  # type: ignore[misc]
        if self.is_sliding:  # one that records its past may give more of it (transformers 5.16)
            seen = self.sliding_window - 1 + key_states.shape[-2]
            keys, values = keys[..., -seen:, :], values[..., -seen:, :]
        if self.lent is not None:
            keys = self.lent.spread(keys)
        if self.visible is not None:
            return self.visible.take(keys), self.visible.take(values)
        return keys, values

    def held(self) -> KVIndex:
        """Return what is physically there now: a sliding entry has forgotten what left its window."""
        if self.window is None or not self.is_initialized or self.keys.dim() != 4:
            return self.kv
        return self.kv.last(self.keys.shape[-2])

    @property
    def window(self) -> int | None:
        """Entries of the past that a step sees besides its own, if this entry slides."""
        return self.sliding_window - 1 if self.is_sliding else None

    def get_seq_length(self) -> int:
        return self.kv.total

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.kv.total + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        # Versions before 5.18 also say how long the cache should become, and some have a tensor for it.
        tokens_to_remove = int(tokens_to_remove)
        remove = self.kv.total - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        if self.window is not None and self.kv.total > self.window and not self.record_past:
            super().crop(tokens_to_remove)  # type: ignore[misc] # says that what slid out cannot come back
        if remove <= 0:
            return
        self.kv, entries = self.held().crop(min(remove, self.kv.total))
        if self.states is not None:
            self.states.crop(self.kv.total)
        if entries:
            self.values = self.values[..., :-entries, :]
            self.lent = None if self.lent is None else self.lent.up_to(self.values.shape[-2])
            self.keys = self.keys[..., :-entries, :] if self.lent is None else self.keys[..., : self.lent.own, :]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.kv, self.visible, self.states, self.lent = KVIndex(0, 0), None, None, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        batch = self.keys.shape[0]
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._select(torch.arange(batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        batch = self.keys.shape[0]
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(torch.arange(batch)[indices.cpu()])

    def _select(self, rows: Tensor) -> None:
        self.kv = self.kv.select(rows)
        self.lent = None if self.lent is None else self.lent.select(rows)
        if self.states is not None:
            self.states.select(rows)
        self.reuses = tuple(self.reuses[row] for row in rows.tolist()) if self.reuses else ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and saved as what it was before it became compact, and what it holds: the class is made at run time."""
        return _empty, (type(self).__bases__[1],), {**self.__dict__, "coming": None}


@functools.cache
def _compact_type(base: type) -> type:
    return type(f"Compact{base.__name__}", (CompactMixin, base), {})


def _empty(base: type) -> Any:
    """Return a compact entry over the class ``base``, before it gets its state."""
    return object.__new__(_compact_type(base))


def cache_among(values: Iterable[Any]) -> Cache | None:
    """Return the cache that stock code passes or returns, whatever it calls it: its name changed with transformers 5.24."""
    return next((value for value in values if isinstance(value, Cache)), None)


def entry_of(cache: Cache | None, layer: int) -> Any | None:
    """Return the cache entry of a layer, created if the cache makes its entries lazily; None without a cache."""
    if cache is None:
        return None
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= layer:
            cache.layers.append(cache.layer_class_to_replicate())
    return cache.layers[layer]


def held_by(entry: Any) -> Any:
    """Return what is one object for entries that hold the same, and so are told and see the same in a step of decoding; for
    one of which that cannot be known, the entry itself."""
    if isinstance(entry, CompactMixin):
        return entry if entry.is_sliding else entry.kv
    return DynamicLayer if type(entry) is DynamicLayer else entry


def is_led(entry: Any, cache: Cache | None) -> bool:
    """Tell whether stock code asks a compact entry for the mask of this plain one: the first that slides, for all that do."""
    if cache is None or isinstance(entry, CompactMixin) or not getattr(entry, "is_sliding", False):
        return False
    return isinstance(next(each for each in cache.layers if getattr(each, "is_sliding", False)), CompactMixin)


def check_whole(cache: Cache, past: int, told: int | None, known: bool) -> None:
    """Raise `UnsupportedCacheError` for a cache that was made of the tensors of a reduced one, without what they stand for.

    Args:
        past: tokens that it says it holds; every entry was found to hold as many, if it is ``known``.
        told: tokens that the attention mask has before those of this forward, or None: nobody says.
    """
    plain = [e for e in cache.layers if isinstance(e, DynamicLayer) and not e.is_sliding] if not known else []
    lengths = {int(entry.get_seq_length()) for entry in plain} - {0}
    if lengths - {past} or (told is not None and told > past > 0):
        seen = " and ".join(map(str, sorted(lengths)))
        mask = "" if told is None else f", and the attention mask tells of {told}"
        raise UnsupportedCacheError(
            f"this cache says that it holds {seen} tokens{mask}: it has the tensors of a cache that was filled under a foveate "
            "handle, but not which tokens they are; go on with that cache itself, or a copy of it (copy.deepcopy, torch.save)"
        )


def window_of(entry: Any) -> int:
    """Tell how many tokens of the past an entry of its kind holds at most in the stock model."""
    if type(entry) is DynamicLayer or not isinstance(entry, DynamicSlidingWindowLayer) or entry.record_past:
        return sys.maxsize
    return int(entry.sliding_window) - 1


def compact(cache: Cache, layer: int, kv: KVIndex) -> CompactMixin:
    """Return the compact entry of a layer; makes it so if it is not yet. ``kv``: what it already holds."""
    entry: Any = cache.layers[layer]
    if isinstance(entry, CompactMixin):
        return entry
    if isinstance(entry, StaticLayer) or not isinstance(entry, DynamicLayer):
        raise UnsupportedCacheError(
            f"a cache of {type(entry).__name__} cannot hold layers of different length; use the default DynamicCache "
            "(generate without cache_implementation='static')"
        )
    new: CompactMixin = _empty(type(entry))
    new.__dict__.update(entry.__dict__, kv=kv, visible=None, states=None, coming=None)
    cache.layers[layer] = new  # type: ignore[call-overload] # of a class that is made at run time
    return new
