"""Cache sites: tokens leave the KV cache of a layer when the prompt has ended, and what they took is freed.

All layers have seen them by then, so the prompt and its first answer token are those of a call without the site; generated
tokens and later turns see the survivors, at their old positions. Where an answer is written in denoising steps that read the
cache, a site may also wait for one of them (`foveate.runtime.canvas`). As every site acts after the last layer, a layer may
be cut to what a deeper one has chosen (`Tokens.state`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from foveate.errors import InputError, UnsupportedCacheError, UnsupportedSiteError
from foveate.runtime.cache import CompactMixin, KVIndex, of_spans
from foveate.runtime.context import Action, DecoderPass
from foveate.runtime.layout import Rows, take_rows
from foveate.runtime.presence import Presence
from foveate.runtime.prompt import Denoised, Ending, Prompt
from foveate.runtime.signals.past import Past
from foveate.tokens import Reduction

_OF_THE_PROMPT = {"received", "text_rows"}  # what queries of the whole prompt pay: chunks do not add up to it


class CacheSites:
    """The methods that remove tokens from the cache, in the order of the sum and of the sites that each names."""

    def __init__(self, actions: Sequence[Action]) -> None:
        self.actions = [action for action in actions if action.site.at == "cache"]
        #: those that act at a denoising step, before which attention of the step before is read
        self.later = [action for action in self.actions if action.site.step]

    def __bool__(self) -> bool:
        return bool(self.actions)

    def watches(self, layer: int) -> bool:
        """Tell whether the entry of a layer must know its visual tokens."""
        return any(action.site.layer == layer for action in self.actions)

    def follow(self, call: DecoderPass, prompt: Prompt | None, mask: Tensor | None) -> None:
        """Note what a forward brings of its prompt, and whether the prompt ends with it."""
        if not self.actions:
            return
        prompt = prompt or Prompt(alone=True)
        brings = () if call.layout is None else call.layout.tokens.spans.number
        earlier, all_spans = prompt.spans, prompt.spans | set(brings)
        ends = call.past + call.length >= prompt.total and bool(all_spans)
        if mask is None and not call.past:  # one of another shape may tell
            mask = call.present
        call.ending = Ending(ends, all_spans, mask=mask)
        prompt.spans = frozenset() if ends else all_spans
        if prompt.spans or (ends and earlier):
            self._refuse_parts()

    def _refuse_parts(self) -> None:
        for action in self.actions:
            asked = [str(kind.signal) for kind in action.asks if kind.name in _OF_THE_PROMPT]
            if asked:
                raise InputError(
                    f"{action.method.name()} wants {', '.join(asked)} at {action.site}, which is attention of the whole "
                    "prompt, and this one comes in chunks: use prefill_chunk_size=None"
                )

    def free(self, call: DecoderPass, cache: Cache | None) -> None:
        """At the end of a forward, let every site decide that waits for no step, and remove what it does not keep."""
        before = call.states.denoised
        if before is not None:  # what comes next is written from the first step on
            before.done = 0
        if not call.ending.here or cache is None:
            return
        for action in self.actions:
            if not action.site.step:
                self.act(call, action, cache)
        if self.later:
            if before is not None and not before.acted:  # images of an earlier turn wait, too
                call.ending.spans |= before.ending.spans
            call.states.denoised = Denoised(call.ending, call.samples)

    def act(self, call: DecoderPass, action: Action, cache: Cache) -> None:
        """Let one site decide, and remove what it does not keep."""
        layer, entry = action.site.layer, cache.layers[action.site.layer]
        if not isinstance(entry, CompactMixin) or entry.kv.visual is None:
            return
        _check(action, entry)
        held, readings = call.memo.once("held", (entry.kv,), lambda: Held.by(call, entry.kv)), call.ending.readings
        if layer in readings and readings[layer].take is None:
            readings[layer].width = entry.kv.length  # all that the attention saw, earlier turns and chunks too
        several = 1 if call.samples is None else call.samples.last.shape[1]
        here = Presence(held.slots, None, Past(readings), call.trace, samples=several)
        reduction = action.decide(call.trace, here.tokens(action, state=call.states.of(action.method, action.part)))
        new, take = held.whole.reduce(held.of_all(reduction))
        if take is None:
            return
        _wait(cache, entry.keys)
        entry.keys, entry.values = take_rows(entry.keys, take, 2), take_rows(entry.values, take, 2)
        entry.kv = entry.kv.take(take, new)
        if layer in readings:
            readings[layer].narrow(take)


@dataclass(frozen=True, eq=False)
class Held:
    """What a cache entry holds when a prompt has ended.

    Attributes:
        whole: all of it, with all of its visual tokens.
        mine: which of their spans this prompt has brought.
        keep: ``(K,)`` which of the visual tokens these are.
        slots: these alone.
    """

    whole: Rows
    mine: tuple[int, ...]
    keep: Tensor
    slots: Rows

    @classmethod
    def by(cls, call: DecoderPass, kv: KVIndex) -> Held:
        """Find what a cache entry described by ``kv`` holds at the end of a forward."""
        visual = kv.visual
        assert visual is not None
        spans = visual.tokens.spans
        mine = tuple(s for s, number in enumerate(spans.number) if number in call.ending.spans)
        tokens, keep = of_spans(visual.tokens, mine, [spans.row[s] for s in mine])
        view, mask = kv.view(call.batch, visual.row.device), call.ending.mask
        valid, lengths = view.valid, (kv.length,) * call.batch
        if (
            mask is not None and mask.shape[1] == kv.total
        ):  # the prompt's own padding leaves with the first token that does
            present = mask.to(view.index.device).bool().gather(1, view.index)
            valid = present if valid is None else valid & present
        if valid is not None:
            lengths = tuple(int(n) for n in valid.sum(1).tolist())
        whole = replace(visual, width=kv.length, full=kv.total, lengths=lengths, index=view.index, valid=valid)
        return cls(whole, mine, keep, whole.only(keep, tokens))

    def of_all(self, reduction: Reduction) -> Reduction:
        """Turn a reduction of the tokens of this prompt into one of all visual tokens."""
        tokens, mine = self.whole.tokens, {*self.mine}
        if len(mine) == len(tokens.counts):
            return Reduction(reduction.keep, reduction.counts)
        others = [s for s in range(len(tokens.counts)) if s not in mine]
        _, stay = of_spans(tokens, others, [tokens.spans.row[s] for s in others])
        counts = list(tokens.counts)
        for s, n in zip(self.mine, reduction.counts):
            counts[s] = n
        return Reduction(torch.cat([stay, self.keep[reduction.keep]]).sort().values, tuple(counts))


def _check(action: Action, entry: CompactMixin) -> None:
    if entry.window is not None:
        raise UnsupportedSiteError(
            f"{action.method.name()}: {action.site} is a sliding layer, which forgets by itself: act on full-attention layers"
        )
    if entry.keys.dim() != 4 or entry.keys.shape[-2] != entry.kv.length:
        raise UnsupportedCacheError(
            f"{action.method.name()} removes tokens at {action.site}, and a quantised cache holds them in blocks: use the "
            "default DynamicCache, or a method that reduces before decoder layers"
        )


def _wait(cache: Any, keys: Tensor) -> None:
    """Wait for an offloaded cache, which fetches entries ahead of time on a stream of its own."""
    if getattr(cache, "offloading", False):
        torch.cuda.default_stream(keys.device).wait_stream(cache.prefetch_stream)
