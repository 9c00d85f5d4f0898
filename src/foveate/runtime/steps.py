"""Decode sites: which part of the cached visual tokens a generated token sees. Nothing is freed, so all can come back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers.cache_utils import Cache

from foveate.errors import UnsupportedSiteError
from foveate.runtime.cache import CompactMixin, KVIndex
from foveate.runtime.context import Action, DecoderPass
from foveate.runtime.layout import take_rows, varied
from foveate.runtime.masks import View
from foveate.runtime.presence import Presence
from foveate.runtime.slots import LASTING, LastSlots, Shown, Slots, same
from foveate.tokens import Reduction


class Uncached:
    """Says, once, that methods which act on the cache do nothing in a forward that keeps none."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.warned = list(dict.fromkeys(names)), False

    def warn(self) -> None:
        """This forward keeps no cache."""
        if not self.warned:
            self.warned = True
            verb = "acts" if len(self.names) == 1 else "act"
            warnings.warn(
                f"{' and '.join(self.names)} {verb} on the KV cache, once the prompt is in it, and this forward keeps none "
                "(use_cache=False): nothing happens here; generate with a cache",
                stacklevel=2,
            )


class DecodeSite:
    """One method that chooses, at every decode step, what its layer and all after it may see."""

    def __init__(self, action: Action) -> None:
        self.action, self.layer = action, action.site.layer

    def watches(self, layer: int) -> bool:
        """Tell whether the entry of a layer must know its visual tokens: from the layer whose attention is read."""
        return layer >= self.layer - 1

    def show(
        self, call: DecoderPass, layer: int, entry: CompactMixin, kv: KVIndex, cache: Cache
    ) -> Slots | LastSlots | None:
        """Return the slots that this step may see of a cache entry, which will hold ``kv``; None: all."""
        visual = kv.visual
        if entry.window is not None and layer >= self.layer - 1:
            raise UnsupportedSiteError(
                f"{self.action.method.name()}: decode sites need full-attention layers, not sliding ones"
            )
        if layer < self.layer or visual is None:
            return None
        if self.action.order not in call.choices:  # the first entry with keys, from that layer on
            call.choices[self.action.order] = (self._choose(call, kv, cache), len(visual.tokens))
        reduction, tokens = call.choices[self.action.order]
        if len(visual.tokens) != tokens:
            raise UnsupportedSiteError(
                f"{self.action.method.name()}: the prompt is reduced again after layer {self.layer}, where the choice "
                "is made: choose at a layer after the last reduction"
            )
        return call.memo.once("shown", (reduction, kv), lambda: _shown(entry, kv, reduction, call.batch))

    def _choose(self, call: DecoderPass, kv: KVIndex, cache: Cache) -> Reduction:
        method, visual = self.action.method, kv.visual
        assert visual is not None
        before, slots = cache.layers[self.layer - 1], varied(visual, width=kv.length)
        reading = call.seen.readings.get(self.layer - 1)
        if reading is not None and isinstance(before, CompactMixin) and before.kv.visual is not None:
            slots = varied(before.kv.visual, width=before.kv.length, tokens=visual.tokens)
            if len(before.kv.visual.tokens) != len(visual.tokens):
                raise UnsupportedSiteError(
                    f"{method.name()}: the prompt is reduced at layer {self.layer}, and the choice made there reads the "
                    "attention of the layer before: choose at a layer after the last reduction"
                )
            reading.width = slots.width
        here = Presence(slots, None, call.seen, call.trace)
        tokens = here.tokens(self.action, state=call.states.of(method, self.action.part))
        return self.action.decide(call.trace, tokens)


def _shown(entry: CompactMixin, kv: KVIndex, reduction: Reduction, batch: int) -> Slots | LastSlots | None:
    """Return the slots of a cache entry, which will hold ``kv``, that the step may see; None: all.

    As long as the choice is that of the step before, these are the slots of that step and the newest one.
    """
    last, steps = entry.kv.shown, 1
    if last is not None and kv.length == entry.kv.length + 1 and same(last.keep, reduction.keep):
        view, steps = None if last.slots is None else last.slots.append(kv.length - 1), last.steps + 1
    else:
        visual = kv.visual
        assert visual is not None
        lengths = (kv.length,) * batch
        whole = replace(visual, width=kv.length, full=kv.total, lengths=lengths, index=None, valid=None)
        shown, take = whole.reduce(reduction)
        view = None if take is None else View(take, shown.valid)
    heads = entry.keys.shape[1] if entry.keys.dim() == 4 else 0  # (a quantised one may hold no rows here)
    slots = view if view is None or isinstance(view, LastSlots) else Slots.of(view, heads, kv.length)
    kv.show(Shown(reduction.keep, slots, steps))
    return slots


def put_in_order(entries: Sequence[CompactMixin], kv: KVIndex, cache: Cache) -> tuple[KVIndex, LastSlots] | None:
    """Put entries that hold the same in order for what they show, if that has not changed for some steps.

    Not where this would wait for a device, nor where keys and values are elsewhere until they are needed.

    Args:
        kv: what they are to hold after this step.

    Returns:
        what they will hold then, and the slots that the step sees; None: nothing was done.
    """
    held, shown = entries[0].kv, kv.shown
    if shown is None or shown.steps <= LASTING or not isinstance(shown.slots, Slots) or held.groups is not None:
        return None
    seen = shown.slots.index[:, :-1]
    here = seen.device.type == "cpu" and not getattr(cache, "offloading", False)
    if not here or any(each.keys.dim() != 4 or each.keys.shape[2] != held.length for each in entries):  # (quantised)
        return None
    hidden = torch.ones(len(seen), held.length, dtype=torch.bool).scatter_(1, seen, False)
    take = torch.cat([hidden.nonzero()[:, 1].view(len(seen), -1), seen], 1)
    ordered = held.ordered(take)
    coming = ordered.append(1)
    slots = LastSlots.like(shown.slots, coming.length)
    coming.show(shown._replace(slots=slots))
    for each in entries:
        each.kv, each.keys, each.values = ordered, take_rows(each.keys, take, 2), take_rows(each.values, take, 2)
    return coming, slots
