"""A canvas: a second stack of layers, in which denoising steps write the answer and read the KV cache of the prompt.

Its tokens see each other and what the cache holds, so where tokens of the prompt are gone there is less to read. What is left
to do is to hide padding of ours and what a stock window would have forgotten, and to let sites of the cache act before the step
that they name, by what the tokens of the step before looked at.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from foveate.errors import UnsupportedCacheError
from foveate.models.family import Family
from foveate.runtime.cache import CompactMixin, KVIndex, cache_among, entry_of
from foveate.runtime.context import DecoderPass
from foveate.runtime.decoder import DecoderHooks
from foveate.runtime.facts import Facts
from foveate.runtime.hooks import Hooks, by_name, by_position, first_argument
from foveate.runtime.notes import note_of
from foveate.runtime.recurrent import attention_of
from foveate.runtime.signals.kernel import Probe, watch
from foveate.runtime.signals.reading import Reading
from foveate.runtime.state import States, states_in
from foveate.runtime.trace import tick
from foveate.runtime.weigh import weigh


class CanvasHooks:
    """Hooks of the canvas of a model, if it has one."""

    def __init__(self, model: nn.Module, family: Family, decoder: DecoderHooks) -> None:
        self.spec, self.context, self.arguments = family.decoder, decoder.context, decoder.arguments
        self.denoising, self.caches = family.denoising, decoder.caches
        self.module: Any = None
        self.layers: list[nn.Module] = []
        if self.denoising is None or not self.denoising.canvas:
            return
        try:
            self.module = model.get_submodule(self.denoising.canvas)
            layers: Any = self.module.get_submodule(self.spec.layers)
        except AttributeError:
            wrong = f"Denoising.canvas={self.denoising.canvas!r}"
            raise Facts(family).wrong(wrong, f"{type(model).__name__} has no such stack of layers") from None
        self.layers = list(layers)

    def attach(self, hooks: Hooks) -> None:
        """Hook the canvas and its layers."""
        if self.module is None:
            return
        hooks.pre(self.module, self._begin)
        hooks.post(self.module, self._end, first=True, always=True)
        for i, layer in enumerate(self.layers):
            hooks.pre(layer, partial(self._before, i))
            attention = attention_of(layer, self.spec)
            if attention is not None and any(a.site.layer == i and a.asks for a in self.caches.later):
                hooks.change(watch(attention, Probe(partial(self._reading, i))))

    def _reading(self, layer: int) -> Reading | None:
        call = self.context.canvas
        return None if call is None else call.ending.readings.get(layer)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A step begins: what is due leaves the cache."""
        assert self.denoising is not None
        self.context.canvas = None
        cache = cache_among([*args, *kwargs.values()])
        ids = first_argument(args, kwargs, "decoder_input_ids")
        if cache is None:  # stock code has a sentence for that
            return
        trace = self.context.trace
        batch, length = ids.shape
        call = DecoderPass(batch, length, int(cache.get_seq_length()), trace, tick(ids.device))
        trace.canvas_flops += self.denoising.around(module, args, kwargs)
        states = states_in(cache)
        if states is not None and states.denoised is not None:
            self._act(call, cache, states)
        self.context.canvas = call

    def _act(self, call: DecoderPass, cache: Cache, states: States) -> None:
        """Let the sites act whose step has come, and say which of them want to know what this step looks at."""
        progress = states.denoised
        assert progress is not None
        call.states, call.ending, call.samples, call.step = states, progress.ending, progress.samples, progress.done
        due = [a for a in self.caches.later if a.site.step == call.step and a.order not in progress.acted]
        for action in due:
            if action.asks and action.site.layer not in call.ending.readings:
                raise UnsupportedCacheError(
                    f"{action.method.name()} acts at {action.site} by what the step before looked at, and the rows of the "
                    "cache have changed since: choose rows before the first step"
                )
            self.caches.act(call, action, cache)
            progress.acted.add(action.order)
        if due:
            weigh(call.trace, cache, call.batch, call.past)
        call.ending.readings.clear()
        progress.done += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call, self.context.canvas = self.context.canvas, None
        if call is None or output is None:
            return
        call.trace.clocks.setdefault("decode", []).append((call.start, tick(output[0].device)))
        call.trace.decode_steps = len(call.trace.canvas) // len(self.layers)

    def _before(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments of a layer that sees less of the prompt than stock code believes; None: as they are."""
        call = self.context.canvas
        if call is None:
            return None
        hidden: Tensor = first_argument(args, kwargs, "hidden_states")
        positional = len(args)
        args, kwargs = by_name(layer, args, kwargs)
        entry: Any = entry_of(cache_among(kwargs.values()), i)
        keys = self._keys(call, entry)
        held = entry.keys.shape[-2]
        noted = note_of(call, call.length, keys, entry)
        call.trace.canvas.append(noted)
        if isinstance(entry, CompactMixin) and entry.kv.visual is not None:
            noted.visual = len(entry.kv.visual.tokens)
        self._ask(call, i, held, hidden.device)
        if keys is None:
            return None
        if call.position_ids is None and isinstance(kwargs.get("position_ids"), Tensor):
            call.position_ids = kwargs["position_ids"][None].expand(-1, call.batch, -1)
        kwargs = self.arguments.derive(call, i, layer, entry, keys, hidden, args, kwargs)
        return by_position(layer, positional, args, kwargs)

    @staticmethod
    def _keys(call: DecoderPass, entry: Any) -> KVIndex | None:
        """Return what the attention of a layer sees; None: what stock code believes."""
        if not isinstance(entry, CompactMixin):
            return None
        kv = entry.kv
        if kv.whole and kv.shift is None and entry.window is None:
            return None
        return call.memo.once(f"seen {entry.window}", (kv,), lambda: _seen(entry).append(call.length))

    def _ask(self, call: DecoderPass, i: int, held: int, device: torch.device) -> None:
        """Let the attention of a layer be read for the sites of its cache whose step comes next."""
        progress = call.states.denoised
        here = [a for a in self.caches.later if a.site.layer == i and a.asks and a.site.step == call.step + 1]
        actions = [a for a in here if progress is not None and a.order not in progress.acted]
        if not actions:
            return
        rows = torch.arange(call.length, device=device).expand(call.batch, -1)
        reading = Reading(width=held + call.length, take=torch.arange(held, device=device).expand(call.batch, -1))
        for action in actions:
            for kind in action.asks:
                kind.ask(reading, lambda which: rows)
        call.ending.readings[i] = reading


def _seen(entry: CompactMixin) -> KVIndex:
    """Return what a stock canvas would see of what an entry holds: of one that slides, no more than its window."""
    kv, window = entry.held(), entry.window
    if window is None or kv.index is None or kv.total <= window:
        return kv
    inside = kv.index >= kv.total - window
    return replace(kv, valid=inside if kv.valid is None else kv.valid & inside, _made={}, _shown=[])
