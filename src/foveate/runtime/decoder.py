"""Language-model sites: at entry, before a decoder layer, and at decode steps.

The stock model sees full sequences; between a layer's pre-hook and the final norm the hidden states hold fewer tokens.
`entry` finds the visual tokens, `arguments` gives every layer its mask, rotary embeddings and cache entry, `steps` limits
what generated tokens see. This file is the walk through the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InputError, UnsupportedModelError
from foveate.method import Method
from foveate.models.family import Family
from foveate.runtime.alone import text_alone
from foveate.runtime.appending import append
from foveate.runtime.arguments import LayerArguments
from foveate.runtime.asking import QueryHooks
from foveate.runtime.cache import CompactMixin, KVIndex, cache_among, check_whole, compact, entry_of, is_led, window_of
from foveate.runtime.context import Action, Context, DecoderPass
from foveate.runtime.deepstack import add_deepstack
from foveate.runtime.denoising import begin, is_due, left_before, note
from foveate.runtime.entry import Entry
from foveate.runtime.freeing import CacheSites
from foveate.runtime.hooks import Hooks, by_name, by_position, first_argument, replace_first
from foveate.runtime.injecting import remember
from foveate.runtime.layers import LayerCalls
from foveate.runtime.layout import Rows, take_rows
from foveate.runtime.notes import log_called, log_of, log_stock, note_of
from foveate.runtime.parking import Lot, come_back
from foveate.runtime.parts import PartHooks
from foveate.runtime.presence import Presence
from foveate.runtime.prompt import Inputs
from foveate.runtime.reads import Reads
from foveate.runtime.recalling import at_layer, recalls
from foveate.runtime.recurrent import attention_of, row_by_row
from foveate.runtime.reuse import ReuseHooks
from foveate.runtime.samples import present_in
from foveate.runtime.shared import rows_of, sources_of
from foveate.runtime.sight import look
from foveate.runtime.signals.kernel import Probe, is_flash, watch
from foveate.runtime.state import States, keep_states, states_in
from foveate.runtime.steps import DecodeSite, Uncached
from foveate.runtime.trace import tick
from foveate.runtime.virtual import VirtualHooks
from foveate.runtime.weigh import weigh
from foveate.tokens import Parked, Reduction, Tokens


class DecoderHooks:
    """Puts the language model's sites on a model."""

    def __init__(
        self, base: nn.Module, config: Any, family: Family, actions: list[Action], context: Context, holes: bool
    ) -> None:
        self.base, self.family, self.spec, self.context = base, family, family.decoder, context
        self.model = base.get_submodule(self.spec.module)
        layers: Any = self.model.get_submodule(self.spec.layers)
        self.layers: list[nn.Module] = list(layers)
        self.reuse = ReuseHooks([a for a in actions if a.site.action == "reuse"], self.layers, config, family, context)
        actions = [a for a in actions if a.site.action != "reuse"]
        self.first = [a for a in actions if a.site.at == "lm_entry"]
        self.before: dict[int, list[Action]] = {i: [] for i in range(len(self.layers) + 1)}
        for action in actions:
            if action.site.at == "decoder" and not action.site.part:
                self.before[action.site.layer].append(action)
        #: one method alone reduces here, so what its first site meets of an image is what the tower has left
        self.alone = len({a.part for a in actions if a.site.at in ("lm_entry", "decoder")}) == 1
        self.alone &= all(a.site.action != "append" for a in actions)
        self.step = next((DecodeSite(a) for a in actions if a.site.at == "decode"), None)
        self.caches = CacheSites(actions)
        self.uncached = Uncached([a.method.name() for a in actions if a.site.at in ("decode", "cache")])
        self.holes = holes
        self.entry = Entry(base, config, family, holes)
        self.arguments = LayerArguments(family, self.model, any(a.method.positions != "keep" for a in actions))
        self.reads = Reads(actions, self.layers, self.spec, self.arguments, self._keys)
        self.entry.states = frozenset(self.reads.wanted.tower)
        self.sources = sources_of(self.layers, self.spec, self.model.config)
        self.recurrent = [i for i, layer in enumerate(self.layers) if attention_of(layer, self.spec) is None]
        #: layers whose attention sees tokens that are set aside: hooks, and where the method says so
        self.lends = {
            i: (QueryHooks(i, self.layers[i], self.spec, context), next(a.site for a in of_layer))
            for i, each in self.before.items()
            if (of_layer := [a for a in each if a.site.action == "attend"])
        }
        inside = {i: [a for a in actions if a.site.part and a.site.layer == i] for i in range(len(self.layers))}
        self.parts = {
            i: PartHooks(i, self.layers[i], self.spec, context, of_layer, self._tokens)
            for i, of_layer in inside.items()
            if of_layer
        }
        #: whether the language model may hold fewer tokens anywhere, or leave some out of a part of a layer
        self.reduces = any((holes, self.first, self.step, self.caches, self.reuse, self.parts, *self.before.values()))
        self.virtual = VirtualHooks(self.layers, self.spec, context)
        self.stand_for_members = False  # merged tokens do, in attention
        self.apart: Callable[[], tuple[int, ...] | None] = torch.compiler.disable(self._apart)
        self.calls = LayerCalls(
            self.layers, context, self.arguments, self._before_layer, self.reads, self.step, not self.reuse
        )

    def attach(self, hooks: Hooks) -> None:
        """Hook the base model, the language model, its layers and its norm."""
        hooks.pre(self.base, self._inputs, rests=True)
        hooks.post(self.base, self._finish, always=True, rests=True)
        hooks.pre(self.model, self._begin, rests=True)
        hooks.post(self.model, self._end, first=True, always=True, rests=True)
        if not self.reduces:
            for i, layer in enumerate(self.layers if self.spec.shared else ()):
                hooks.pre(layer, partial(log_called, self.context, self.spec, i, self.sources[i]))
            return
        if self.arguments.renumber:
            hooks.pre(self.arguments.rotary, self._positions)
        self.calls.attach(hooks)
        for i, layer in enumerate(self.layers):
            attention = attention_of(layer, self.spec)
            if attention is None:
                hooks.instead(layer.get_submodule(self.spec.recurrent), "forward", partial(self._recur, i))
            elif self.reuse.touches(i):
                hooks.change(
                    watch(attention, Probe(partial(self.reads.now, self.context, i), partial(self.reuse.exchange, i)))
                )
            elif self.reads.watches(i) or self._some_ask(i) or is_flash(attention):
                hooks.change(watch(attention, Probe(partial(self.reads.now, self.context, i))))
            if i in self.parts:
                self.parts[i].attach(hooks)
            if i in self.lends:
                self.lends[i][0].attach(hooks)
        self.reuse.attach(hooks)
        if self.stand_for_members:
            self.virtual.attach(hooks)

    def attach_norm(self, hooks: Hooks) -> None:
        """Wrap the norm, around what a method has changed of it by hand."""
        if self.reduces:
            self.calls.attach_norm(hooks, self.model.get_submodule(self.spec.norm), self._at_norm)

    def _some_ask(self, i: int) -> bool:
        """Tell whether only some rows of a layer may have queries."""
        return i in self.lends or (i in self.parts and bool(self.parts[i].queries))

    # -- the call ---------------------------------------------------------------------------------------------------

    def _inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.context.inputs = self.entry.inputs(self.context.prompt, args, kwargs)

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        self.context.inputs = self.context.decoder = None
        if output is None:  # an error is on its way
            self.context.tower = None
        self.context.calls.leave("model", None if output is None else self.context.trace)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        embeds = kwargs.get("inputs_embeds")
        self.context.decoder = None
        if embeds is None or self.context.aside:
            return None
        cache, mask = cache_among(kwargs.values()), kwargs.get("attention_mask")
        inputs, self.context.inputs = self.context.inputs or Inputs(None, None, ()), None
        past = int(cache.get_seq_length()) if cache is not None else 0  # (a tensor where 5.16 has cropped the cache)
        if past == 0 and (self.context.trace.prefill or not inputs.modalities):
            # A new prompt that no tower call announced: text only, or features computed beforehand.
            self.context.trace = self.context.new_trace()
        call = DecoderPass(embeds.shape[0], embeds.shape[1], past, self.context.trace, tick(embeds.device))
        kept = states_in(cache) if past else None
        call.states = self.context.begun.meet(kept, cache is not None) if inputs.modalities else kept or States()
        if inputs.mask is None and isinstance(mask, Tensor) and mask.dim() == 2:
            inputs.mask = mask  # (else what the base model was given says more than the pattern that it makes)
        plain = inputs.mask if isinstance(inputs.mask, Tensor) and inputs.mask.dim() == 2 else None
        self.begin(call, cache, plain, brings=bool(inputs.modalities))
        if not inputs.modalities:
            return None
        if not self.reduces:
            call.trace.placeholders.append(self.entry.count(inputs))
            for record in self.context.records:
                record.consumed = True
            return None
        begin(call, self.context.prompt, self.family.denoising)
        call.records, call.ids = self.context.records, inputs.input_ids
        call.present = present_in(inputs.mask, call.batch, call.length, past)
        kwargs = {**kwargs, "inputs_embeds": self.entry.arrive(call, inputs, embeds, kwargs)}
        call.embeds = embeds if self.reads.text_pass else None
        self.caches.follow(call, self.context.prompt, plain)
        call.complete = call.layout
        if call.layout is not None and call.trace.detailed:
            call.trace.arrived.append((call.layout.tokens, call.arrived))
        if self.stand_for_members:
            self.virtual.arrive(call)
        if self.spec.deepstack:  # the stock loop would add to all tokens
            features, of = self.spec.deepstack
            mask = kwargs.pop(of, None)
            call.deepstack = kwargs.pop(features, None) or ()
            call.rank = None if mask is None else (mask.flatten().cumsum(0) - 1).view_as(mask)
        return args, kwargs

    def begin(self, call: DecoderPass, cache: Any, mask: Tensor | None, brings: bool) -> None:
        """Look at what the layers will see, in a forward that ``brings`` images or not; ``mask (B, past + L)``: of padding."""
        if self.reduces and cache is not None:
            told = None if mask is None else mask.shape[1] - call.length
            check_whole(cache, call.past, told, known=call.trace.kv.is_of(cache, call.batch, call.past))
        self.context.decoder = call
        if self.reduces:
            self.calls.begin(call, None if brings else cache)
        else:
            unseen = range(0 if self.spec.shared else len(self.layers))  # no layer is hooked: all of them are stock
            log_stock(call, [entry_of(cache, i) if call.past else None for i in unseen])
            self.calls.steady.enter(True, [], call.ready)
        if not (self.reduces and brings):
            self.caches.follow(call, self.context.prompt, mask)

    def _positions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self.context.decoder
        if call is not None and call.position_ids is None:
            ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
            ids = ids[None] if ids.dim() == 2 else ids
            call.position_ids = ids.expand(-1, call.batch, -1)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.context.aside:
            return
        call, self.context.decoder = self.context.decoder, None
        self.calls.steady.leave()
        if call is None or output is None:
            return
        fewer = call.reduced is not None
        if call.layout is not None:
            fewer |= any(each.parts is not None for each in call.trace.prefill[-len(self.layers) :])
        for name in self.spec.complete:
            if fewer and getattr(output, name, None) is not None:
                raise InputError(
                    f"output_{name} wants a row for every token in every layer, and this method leaves fewer: set "
                    f"output_{name}=False (losses that are made of it go with it)"
                )
        self.end(call, output)

    def end(self, call: DecoderPass, output: Any) -> None:
        """Note what a forward has left, by the output of the language model or the whole; let the sites of its cache act."""
        decoding = bool(call.past) and call.layout is None
        call.trace.clocks.setdefault("decode" if decoding else "prefill", []).append(
            (call.start, tick(output[0].device))
        )
        call.trace.decode_steps += decoding
        cache = cache_among(output if isinstance(output, tuple) else output.values())
        self.caches.free(call, cache)
        if self.reduces:
            keep_states(cache, call.states, call.past + call.length)
        weigh(call.trace, cache, call.batch, call.past + call.length)

    # -- layers -----------------------------------------------------------------------------------------------------

    def _before_layer(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.context.decoder
        if call is None:
            return None
        hidden = given = first_argument(args, kwargs, "hidden_states")
        positional = len(args)
        args, kwargs = by_name(layer, args, kwargs)
        if call.layout is not None:
            hidden = add_deepstack(call, i - 1, hidden)
            if i - 1 in self.reads.wanted.left:
                call.seen.left[i - 1] = hidden
            hidden = at_layer(call, self.context.tape, i, self._sites(call, i, hidden, args, kwargs))
            call.seen.forget(2 * i, self.reads.wanted.until)
            if i in self.reads.wanted.entered:
                call.seen.entered[i] = hidden
        if call.lot is not None and i in self.lends:
            kwargs = self._lend(call, i, layer, hidden, args, kwargs)
            args, kwargs = replace_first(args, kwargs, "hidden_states", hidden)
            return by_position(layer, positional, args, kwargs)
        keys, entry = self._keys(call, i, layer, kwargs)
        borrows = i in call.reusing
        log_of(call).append(note_of(call, hidden.shape[1], keys, entry, call.reusing.get(i)))
        self.reads.begin(call, i, hidden, keys, entry)
        self.virtual.refuse_replay(call, layer)
        if keys is None and hidden is given and not borrows and call.fewer is call.reduced:
            return None
        kwargs = self.arguments.derive(call, i, layer, entry, keys, hidden, args, kwargs)
        kwargs = self.reuse.borrow(call, i, kwargs) if borrows else kwargs
        args, kwargs = replace_first(args, kwargs, "hidden_states", hidden)
        return by_position(layer, positional, args, kwargs)

    def _lend(
        self, call: DecoderPass, i: int, layer: nn.Module, hidden: Tensor, args: Any, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of a layer whose attention sees the tokens that are set aside as well as its own rows."""
        lot, layout, site = call.lot, call.layout, self.lends[i][1]
        assert lot is not None
        assert layout is not None
        rows = lot.lend(call.trace, layout, hidden, site)
        call.layout = lot.outer
        keys, entry = self._keys(call, i, layer, kwargs)
        self.reads.begin(call, i, rows, keys, entry)
        new = self.arguments.derive(call, i, layer, entry, keys, rows, args, kwargs)
        call.layout = layout
        lent = len(lot.outer.tokens) - len(layout.tokens)
        log_of(call).append(note_of(call, hidden.shape[1], keys, entry, lent=lent))
        self.lends[i][0].lend(call, lot, rows)
        return new | self.arguments.of_rows(call, kwargs, hidden.shape[1])

    def _keys(self, call: DecoderPass, i: int, layer: nn.Module, kwargs: dict[str, Any]) -> tuple[KVIndex | None, Any]:
        """Return what the attention of layer ``i`` will see (None: all of the sequence), and the cache entry that holds it."""
        cache: Any = cache_among(kwargs.values())
        if (source := self.sources[i]) != i:
            call.rows = rows_of(self.spec, kwargs)
            keys, layout = call.keys[source]
            fewer = call.reduced is not None and (layout is None or layout.index is not call.reduced.index)
            if fewer and is_flash(attention_of(layer, self.spec)):
                raise UnsupportedModelError(
                    f"flash attention cannot align the tokens that are left with the keys of layer {source}, which layer {i} "
                    f"attends to: reduce before layer {source} only, or use sdpa or eager attention"
                )
            entry = entry_of(cache, source)
            if keys is None and fewer:  # some have left since then
                held = call.length + min(call.past, window_of(entry))
                keys = call.memo.once(f"all of {held}", (), lambda: KVIndex(call.past + call.length, held))
            return keys, entry
        entry = None if attention_of(layer, self.spec) is None else entry_of(cache, i)
        watching = call.layout is not None and self._watches(i)
        if watching and cache is None:
            self.uncached.warn()
        taken = self.reuse.begin(call, i, entry) if i in self.reuse.of else None
        rows = None if taken is None else taken.rows
        lacks = taken is not None and taken.reuse.of == "qk"
        masked = call.layout is not None and call.layout.has_mask
        if is_led(entry, cache) or (
            entry is not None and (watching or masked or call.fewer is not None or rows is not None or lacks)
        ):
            entry = compact(cache, i, call.memo.once("before", (), lambda: KVIndex(call.past, call.past)))
        keys = self.arguments.advance(call, entry, watching)
        if isinstance(entry, CompactMixin):
            entry.visible = None
            if self.step is not None and call.layout is None and call.past:
                assert keys is not None
                entry.visible = self.step.show(call, i, entry, keys, cache)
            if rows is not None:
                entry.reuses = rows
            if rows is not None or lacks:
                seen_whole = keys is not None and keys.whole and entry.visible is None
                if call.reduced is None and seen_whole and not self._watches(i):
                    keys = None  # it is compact only to remember that
        if i in self.sources[i + 1 :]:
            call.keys[i] = keys, call.layout
        return keys, entry

    def _watches(self, layer: int) -> bool:
        """Tell whether the cache entry of a layer must know which of its tokens are visual."""
        return self.caches.watches(layer) or (self.step is not None and self.step.watches(layer))

    def _recur(self, i: int, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        lengths = self.apart()
        return stock(*args, **kwargs) if lengths is None else row_by_row(stock, i, lengths, args, kwargs)

    def _apart(self) -> tuple[int, ...] | None:
        """Tokens of each row, where padding of ours would come between a row and the tokens that are cached of it."""
        call = self.context.decoder
        layout = call.reduced if call is not None and call.past else None
        return None if layout is None or layout.valid is None else layout.lengths

    def _sites(self, call: DecoderPass, i: int, hidden: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Everything that happens to the tokens before layer ``i``, which stock code calls with these arguments."""
        if i == 0:
            if call.arrived is not None and call.layout is not None:
                hidden = self._leave(call, call.layout, call.arrived, hidden)
            if call.layout is not None and (left := left_before(call, call.layout.tokens)) is not None:
                hidden = self._leave(call, call.layout, left, hidden)
        for action in [*(self.first if i == 0 else ()), *self.before[i]]:
            hidden = self._act(call, action, hidden, args, kwargs) if is_due(call, action) else hidden
        return hidden

    def _act(self, call: DecoderPass, action: Action, hidden: Tensor, args: Any, kwargs: Any) -> Tensor:
        """One site: read, decide, and give the hidden states that go on."""
        layout, site = call.layout, action.site
        assert layout is not None
        if site.action == "attend" or (site.action == "reduce" and recalls(call)):  # done when the image was encoded
            return hidden
        if site.action == "restore":
            lot, hidden = call.lot, come_back(call, action, layout, hidden)
            if lot is not None:
                call.layout, call.tower, call.members = lot.outer, lot.tower, lot.members
            return hidden
        tokens = self._tokens(call, layout, action, hidden, args, kwargs)
        call.note(action, tokens.counts)
        if site.action == "sight":
            return look(action, call, tokens, hidden, sum(i >= site.layer for i in self.recurrent))
        if site.action in ("append", "remember"):
            return (append if site.action == "append" else remember)(action, call, tokens, hidden)
        reduction = action.decide(call.trace, tokens)
        note(call, action, tokens, reduction)
        if site.action == "park" and len(reduction.keep) == len(tokens):
            return hidden
        parked = (action.method, Parked(tokens, reduction.keep)) if site.action == "park" else None
        return self._leave(call, layout, reduction, hidden, parked)

    def _leave(
        self,
        call: DecoderPass,
        before: Rows,
        reduction: Reduction,
        hidden: Tensor,
        parked: tuple[Method, Parked] | None = None,
    ) -> Tensor:
        """Return the hidden states of those that stay, once everybody who looks at the others has been told."""
        call.layout, take = before.reduce(reduction)
        if take is not None and parked is not None:
            call.lot = Lot(*parked, before, take, 0, call.seen.copy(), call.tower, call.members)
        call.tower = {block: x[reduction.keep.to(x.device)] for block, x in call.tower.items()}
        step = self.virtual.follow(call, before, reduction, call.layout) if self.stand_for_members else None
        if take is not None:
            hidden = take_rows(hidden, take)
            call.seen.narrow(take, before.width, step)
        return hidden if reduction.hidden is None else call.layout.put(hidden, reduction.hidden)

    def _tokens(
        self, call: DecoderPass, layout: Rows, action: Action, hidden: Tensor, args: Any = (), kwargs: Any = None
    ) -> Tokens:
        """Return what a method is shown before a layer that stock code calls with these arguments, or at a part of it."""
        names = call.names or []
        here = Presence(
            layout,
            hidden,
            call.seen,
            call.trace,
            samples=call.samples.last.shape[1] if call.samples is not None else 1,
            text_of=call.text,
            tower=call.tower,
            ahead=partial(self.reads.ahead, call, action.site.layer, hidden, args, kwargs),
            tables=partial(self.arguments.tables, call, kwargs),
            alone=partial(text_alone, self.model, self.context, call),
        )
        return here.tokens(
            action,
            seen=tuple(call.records[m].seen.get((action.order, row, clip), 0) for m, row, clip in names),
            total=tuple(call.records[m].brought[clip] if self.alone else 0 for m, _, clip in names),
            state=call.states.of(action.method, action.part),
        )

    def _at_norm(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The norm gets what is present; what it gives is full length again."""
        call = self.context.decoder
        if call is None or call.layout is None:
            return stock(*args, **kwargs)
        hidden = add_deepstack(call, len(self.layers) - 1, first_argument(args, kwargs, "hidden_states"))
        args, kwargs = replace_first(args, kwargs, "hidden_states", hidden)
        output = stock(*args, **kwargs)
        return output if call.reduced is None else call.reduced.scatter(output, length=call.rows)
