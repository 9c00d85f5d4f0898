"""What is read of decoder layers for the sites after them, or just before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedCacheError, UnsupportedSiteError
from foveate.models.family import Decoder
from foveate.runtime.arguments import LayerArguments
from foveate.runtime.cache import CompactMixin, KVIndex, window_of
from foveate.runtime.context import Action, Context, DecoderPass, wants_gradients
from foveate.runtime.recurrent import attention_of
from foveate.runtime.signals.ahead import read_ahead
from foveate.runtime.signals.kernel import is_flash
from foveate.runtime.signals.kind import Kind
from foveate.runtime.signals.past import Wanted
from foveate.runtime.signals.reading import Reading

Keys = Callable[[DecoderPass, int, nn.Module, dict[str, Any]], tuple[KVIndex | None, Any]]


class Reads:
    """What the sites of a language model ask of its layers.

    Args:
        actions: at these sites.
        keys: gives what the attention of a layer will see, and the cache entry that holds it, prepared for that.

    Attributes:
        wanted, later: in a forward that brings visual tokens, and at decode steps.
        freed: in a forward that ends a prompt, by sites of the cache.
        text_pass: somebody asks what the language model makes of the text alone.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        layers: Sequence[nn.Module],
        spec: Decoder,
        arguments: LayerArguments,
        keys: Keys,
    ) -> None:
        self.layers, self.spec, self.arguments, self.keys = layers, spec, arguments, keys
        self.actions = actions
        self.wanted = Wanted((a.site, a.asks) for a in actions if a.site.at not in ("decode", "cache"))
        self.freed = Wanted((a.site, a.asks) for a in actions if a.site.at == "cache" and not a.site.step)
        steps = {a.site.step for a in actions if a.site.at != "cache"} - {None}
        prompt = [a for a in actions if a.site.at not in ("decode", "cache")]
        #: denoising step -> what is asked in it; `otherwise` in a step at which no site acts
        self.at_step = {n: Wanted((a.site, a.asks) for a in prompt if a.site.step in (None, n)) for n in steps}
        self.otherwise = Wanted((a.site, a.asks) for a in prompt if a.site.step is None) if steps else self.wanted
        self.later = Wanted((a.site, a.asks) for a in actions if a.site.at == "decode")
        self.text_pass = any("text_pass" in kind.needs for a in actions for kind in a.asks)
        self.reusing = frozenset(a.site.layer for a in actions if a.site.action == "reuse")

    def watches(self, layer: int) -> bool:
        """Tell whether something is read of the attention of a layer."""
        return any(asked.reads(layer) for asked in (self.wanted, self.later, self.freed))

    @staticmethod
    def now(context: Context, layer: int) -> Reading | None:
        """The reading of the attention of a layer that runs now."""
        call = context.decoder
        return None if call is None else call.ahead or call.seen.readings.get(layer)

    def begin(self, call: DecoderPass, i: int, hidden: Tensor, keys: KVIndex | None, entry: Any) -> None:
        """Say what the attention of layer ``i`` is to be read for, which sees ``keys`` (None: all of the sequence), those of a
        cache ``entry`` if there is one."""
        decoding, attention = call.layout is None, attention_of(self.layers[i], self.spec)
        wanted = self.later if decoding else self.at_step.get(call.step, self.otherwise)
        kinds = wanted.attention.get(i, [])
        if attention is None or (decoding and (keys is None or not call.past)):
            kinds = []  # nothing to read, a prompt without images, or its continuation
        of_cache = call.ending.here and isinstance(entry, CompactMixin)
        freed = self.freed.attention.get(i, []) if of_cache else []
        kinds = [*kinds, *freed]
        gaps = keys is not None and attention is not None and is_flash(attention)
        if kinds or gaps:
            reading = call.seen.readings[i] = self._reading(call, attention, kinds, hidden)
            reading.drop_positions, reading.gradients = gaps, wants_gradients(self.actions, self.layers[i])
            if freed:
                # This reading stays whole when tokens leave later; the cache holds members, one by one.
                call.ending.readings[i] = replace(reading, steps=())

    @staticmethod
    def _reading(call: DecoderPass, attention: Any, kinds: Sequence[Kind], hidden: Tensor) -> Reading:
        """Return the reading that gives what kinds of signals want of an attention."""
        reading, samples, width = Reading(width=hidden.shape[1]), call.samples, hidden.shape[1]
        reading.steps = () if call.members is None else (call.members,)
        seen = call.attended

        def slots(rows: str) -> Tensor:
            if seen is None or samples is None:  # a generated token
                return torch.full((call.batch, 1), width - 1, device=hidden.device)
            return call.text_in(seen).slots(rows)

        for kind in kinds:
            kind.ask(reading, slots)
        if reading.received:
            reading.valid = call.real(seen)
            reading.queries_of = call.sizes(seen)
        if samples is not None and samples.several and is_flash(attention):
            reading.pattern = samples.pattern(None if call.fewer is None else call.fewer.index, hidden.device)
        return reading

    def ahead(
        self, call: DecoderPass, i: int, hidden: Tensor, args: Any, kwargs: dict[str, Any], kinds: Sequence[Kind]
    ) -> Reading:
        """Return what the attention of layer ``i``, which is to come, would be by the tokens that are present."""
        if i in self.reusing:
            raise UnsupportedSiteError(
                f"{kinds[0].signal} is asked for before layer {i}, which reuses queries of another layer: ask before that one"
            )
        layer = self.layers[i]
        keys, entry = self.keys(call, i, layer, kwargs)
        if isinstance(entry, CompactMixin):
            entry.coming = None  # this has not happened yet
        width = hidden.shape[1]
        n_before = keys.length - width if keys is not None else min(call.past, window_of(entry))
        if n_before and hasattr(attention_of(layer, self.spec), self.spec.latent):
            raise UnsupportedCacheError(
                f"{kinds[0].signal} is asked for before layer {i} with {n_before} tokens in a cache, which holds in this model "
                "what keys are made of, and not keys: ask in the prefill, or after a layer"
            )
        reading = self._reading(call, attention_of(layer, self.spec), kinds, hidden)
        given = self.arguments.derive(call, i, layer, entry, keys, hidden, args, kwargs)
        if any("unrotated" in kind.needs for kind in kinds):
            given = _without_rotation(given, kinds[0])
        call.ahead = reading
        try:
            read_ahead(reading, layer, hidden, given, entry, n_before)
        finally:
            call.ahead = None
        return reading


def _without_rotation(given: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Arguments of a layer whose rotary embeddings turn nothing."""
    tables = given.get("position_embeddings")
    if not isinstance(tables, tuple) or len(tables) != 2:
        raise UnsupportedSiteError(
            f"{kind.signal} is asked for, and stock code gives this layer no rotary tables of the usual form"
        )
    cos, sin = tables
    return {**given, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}
