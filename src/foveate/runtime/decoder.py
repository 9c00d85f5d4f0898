"""Language-model sites: entry, before a decoder layer, and the KV cache at decode steps.

The stock model sees full sequences; between a layer's pre-hook and the final norm the hidden states hold fewer tokens.
Every layer's mask, rotary embeddings and cache entry follow the layout that is in force there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InputError, UnsupportedSiteError
from foveate.models.family import Family
from foveate.runtime.cache import CompactMixin, KVIndex, compact, entry_of
from foveate.runtime.context import Action, Context, Hooks, Inputs, Record, first_argument, replace_first
from foveate.runtime.entry import visual_rows
from foveate.runtime.layout import Rows, take_rows
from foveate.runtime.masks import View, derive, kind_of
from foveate.runtime.positions import renumbered
from foveate.runtime.signals import Probe, Reading, real_implementation, watch
from foveate.runtime.trace import LayerTrace, SiteTrace, Trace, tick
from foveate.tokens import Reduction, Tokens


@dataclass
class DecoderPass:
    """One forward of the language model."""

    batch: int
    length: int  # of the full sequence that this forward brings
    past: int  # of the full sequence, cached before
    trace: Trace
    start: Any
    cache: Any
    layout: Rows | None = None  # visual tokens and their slots; None when this forward brings none
    arrived: Reduction | None = None  # tokens that are no holes, to be taken at the first layer
    names: list[tuple[int, int, int]] | None = None  # of the spans, when the prompt comes in chunks
    records: list[Record] = field(default_factory=list)
    present: Tensor | None = None  # (B, L) the prompt without its padding
    last_slot: Tensor | None = None  # (B,) distance of the last text token from the right end
    question: Tensor | None = None  # (B, R) distances of the text after the last visual token, -1 where a row has less
    position_ids: Tensor | None = None  # (A, B, L)
    previous: Tensor | None = None
    readings: dict[int, Reading] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)
    shift: Tensor | None = None

    @property
    def reduced(self) -> bool:
        return self.layout is not None and self.layout.index is not None

    def once(self, key: tuple[Any, ...], alive: tuple[Any, ...], make: Any) -> Any:
        """``make()``, computed once for all layers; ``alive`` are the objects whose ids are in the key."""
        if key not in self.memo:
            self.memo[key] = (make(), alive)
        return self.memo[key][0]


class DecoderHooks:
    """Puts the language model's sites on a model."""

    def __init__(
        self, base: nn.Module, config: Any, family: Family, actions: list[Action], context: Context, holes: bool
    ) -> None:
        self.base, self.config, self.family, self.spec, self.context = base, config, family, family.decoder, context
        self.model = base.get_submodule(self.spec.module)
        self.layers: Any = self.model.get_submodule(self.spec.layers)
        self.entry = [a for a in actions if a.site.at == "lm_entry"]
        self.sites = [[a for a in actions if a.site.at == "decoder" and a.site.layer == i] for i in range(len(self.layers))]
        self.decode = [a for a in actions if a.site.at == "decode"]
        self.holes = holes
        self.renumber = any(a.method.positions != "keep" for a in actions)
        self.first_decode = min((a.site.layer for a in self.decode), default=len(self.layers) + 1)

    @property
    def reduces(self) -> bool:
        """Whether the language model may hold fewer tokens anywhere."""
        return bool(self.holes or self.entry or self.decode or any(self.sites))

    def attach(self, hooks: Hooks) -> None:
        hooks.pre(self.base, self._inputs)
        hooks.post(self.base, self._finish, always=True)
        hooks.pre(self.model, self._begin)
        hooks.post(self.model, self._end, first=True, always=True)
        if not self.reduces:
            return
        if self.renumber:
            hooks.pre(self.model.get_submodule(self.spec.rotary), self._positions)
        for i, layer in enumerate(self.layers):
            hooks.pre(layer, lambda module, args, kwargs, i=i: self._before_layer(i, module, args, kwargs))
            attention = layer.get_submodule(self.spec.attention)
            if self._signals_of(i) or "flash" in real_implementation(attention.config):
                hooks.change(watch(attention, Probe(lambda i=i: self._reading(i))))
        hooks.post(self.model.get_submodule(self.spec.norm), self._scatter, first=True)

    def _reading(self, layer: int) -> Reading | None:
        return self.context.decoder.readings.get(layer) if self.context.decoder else None

    def _signals_of(self, layer: int, *, decode: bool | None = None) -> frozenset[str]:
        """Signals to read from the attention of a layer, for the sites before the next one."""
        after = layer + 1
        actions = [] if decode else list(self.sites[after]) if after < len(self.layers) else []
        if decode is None or decode:
            actions = actions + [a for a in self.decode if a.site.layer == after]
        return frozenset(name for a in actions for name in a.site.signals) - {"residual", "text", "cls_row"}

    # -- the call ---------------------------------------------------------------------------------------------------

    def _inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        outputs = kwargs.get("mm_encoder_outputs") or {}
        names = {"pixel_values": "image", "pixel_values_videos": "video"}
        brings = tuple(
            pixels
            for pixels in self.family.modalities
            if kwargs.get(pixels) is not None or outputs.get(names[pixels]) is not None
        )
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.context.inputs = Inputs(ids, kwargs.get("inputs_embeds"), brings)

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        self.context.inputs = self.context.decoder = None
        if output is None:
            self.context.tower = None

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            self.context.decoder = None
            return None
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        past = cache.get_seq_length() if cache is not None else 0
        inputs, self.context.inputs = self.context.inputs, None
        brings = inputs.modalities if inputs else ()
        trace = self.context.trace
        if (brings or past == 0) and (trace.prefill or not brings):
            trace = self.context.trace = Trace() if past == 0 and not brings else trace
        call = DecoderPass(*embeds.shape[:2], past, trace, tick(embeds.device), cache)
        self.context.decoder = call
        if mask is not None and isinstance(mask, Tensor) and mask.dim() == 2:
            call.present = mask[:, -call.length :].bool()
        if not (self.reduces and brings):
            return None
        assert inputs is not None
        embeds = self._arrive(call, inputs, brings, embeds)
        return args, {**kwargs, "inputs_embeds": embeds}

    def _arrive(self, call: DecoderPass, inputs: Inputs, brings: tuple[str, ...], embeds: Tensor) -> Tensor:
        """Find the visual tokens and the holes among them; the only device synchronisation of a prefill."""
        masks = [self._placeholders(inputs, pixels, embeds) for pixels in brings]
        flags = list(masks)
        flags.append(torch.ones_like(masks[0]) if call.present is None else call.present)
        if self.holes:
            flags.append(embeds[..., 0].isnan())
        host = torch.stack([flag.to(embeds.device) for flag in flags]).cpu()
        visual, present = list(host[: len(masks)]), host[len(masks)]
        records = self.context.records[-len(brings) :] if len(self.context.records) >= len(brings) else []
        if call.past == 0:
            for record in records:
                record.seen.clear()
                record.progress.clear()
        call.records = records
        call.layout, call.names = visual_rows(visual, records, embeds)
        for record in records:
            record.consumed = True
        if self.holes and bool(host[-1].any()):
            hole = host[-1][call.layout.row.cpu(), call.layout.slot.cpu()]
            keep = (~hole).nonzero().flatten()
            segment = call.layout.tokens.segment.cpu()[keep]
            counts = torch.bincount(segment, minlength=len(call.layout.tokens.counts)).tolist()
            call.arrived = Reduction(keep.to(embeds.device), tuple(int(n) for n in counts))
            embeds = torch.where(flags[-1][..., None], embeds.new_zeros(()), embeds)
        call.last_slot = present.flip(1).to(torch.uint8).argmax(1).to(embeds.device)
        call.question = _question(torch.stack(visual).any(0), present).to(embeds.device)
        return embeds

    def _placeholders(self, inputs: Inputs, pixels: str, embeds: Tensor) -> Tensor:
        """``(B, L)`` bool: the placeholders of one modality, found as stock code finds them."""
        token = getattr(self.config, self.family.modalities[pixels])
        if inputs.input_ids is not None:
            return inputs.input_ids == token
        assert inputs.inputs_embeds is not None
        table: Any = self.base.get_input_embeddings()  # type: ignore[operator]
        vector = table(torch.tensor(token, device=inputs.inputs_embeds.device))
        return (inputs.inputs_embeds == vector).all(-1)

    def _positions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self.context.decoder
        if call is not None and call.position_ids is None:
            ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
            ids = ids[None] if ids.dim() == 2 else ids
            call.position_ids = ids.expand(-1, call.batch, -1)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        call, self.context.decoder = self.context.decoder, None
        if call is None or output is None:
            return
        trace = call.trace
        stage = "prefill" if call.past == 0 or call.layout is not None else "decode"
        trace.clocks.setdefault(stage, []).append((call.start, tick(output[0].device)))
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            _weigh(trace, cache)
        if stage == "decode":
            trace.decode_steps += 1

    # -- layers -----------------------------------------------------------------------------------------------------

    def _before_layer(self, i: int, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self.context.decoder
        if call is None:
            return None
        hidden = given = first_argument(args, kwargs, "hidden_states")
        cache = kwargs.get("past_key_values")
        if call.layout is not None:
            if i == 0:
                hidden = self._enter(call, hidden)
            for action in self.sites[i]:
                hidden = self._act(call, action, hidden)
            after = self.sites[i + 1] if i + 1 < len(self.layers) else []
            call.previous = hidden if any("residual" in a.site.signals for a in after) else None
        entry = entry_of(cache, i)
        watching = call.layout is not None and i >= self.first_decode - 1 and entry is not None
        if call.reduced or watching:
            entry = None if entry is None else compact(cache, i, call.past)
        keys = self._advance(call, entry, watching)
        if call.layout is None and isinstance(entry, CompactMixin):
            entry.visible = None
            self._choose_visible(call, i, entry, cache)
        kwargs = self._derive(call, layer, entry, keys, hidden, kwargs)
        self._read(call, i, layer, hidden, keys)
        self._log(call, hidden, keys, entry)
        if hidden is given:
            return args, kwargs
        return replace_first(args, kwargs, "hidden_states", hidden)

    def _enter(self, call: DecoderPass, hidden: Tensor) -> Tensor:
        """At the first layer: holes leave, then the methods that act where features and text meet."""
        if call.arrived is not None:
            assert call.layout is not None
            call.layout, take = call.layout.reduce(call.arrived)
            hidden = hidden if take is None else take_rows(hidden, take)
        for action in self.entry:
            hidden = self._act(call, action, hidden)
        return hidden

    def _act(self, call: DecoderPass, action: Action, hidden: Tensor) -> Tensor:
        layout = call.layout
        assert layout is not None
        tokens = self._tokens(call, layout, action, hidden)
        reduction = action.method.reduce(tokens, action.site)
        call.trace.sites.append(_visit(action, tokens, reduction))
        self._note_seen(call, action, tokens)
        call.layout, take = layout.reduce(reduction)
        if take is not None:
            hidden = take_rows(hidden, take)
        return hidden if reduction.hidden is None else call.layout.put(hidden, reduction.hidden)

    def _tokens(self, call: DecoderPass, layout: Rows, action: Action, hidden: Tensor) -> Tokens:
        site, signals = action.site, {}
        reading = call.readings.get(site.layer - 1) if site.at == "decoder" else None
        text_counts: tuple[int, ...] = ()
        for name in site.signals:
            if name == "residual":
                if call.previous is None:
                    raise UnsupportedSiteError(f"{site}: no layer before it, so there is no residual update")
                signals[name] = layout.pick(hidden - call.previous)
            elif name == "text":
                signals[name], text_counts = self._text(call, layout, hidden)
            elif reading is None:
                raise UnsupportedSiteError(f"the signal {name!r} is not available at {site}: it needs a layer before it")
            else:
                signals[name] = _of_tokens(name, reading, layout, layout.width)
        if reading is not None:
            call.trace.signal_flops += reading.seen.flops
            reading.seen.flops = 0
        seen: tuple[int, ...] = ()
        if call.names is not None:
            seen = tuple(call.records[m].seen.get((action.order, row, span), 0) for m, row, span in call.names)
        return replace(
            layout.tokens, hidden=layout.pick(hidden), signals=signals, seen=seen, text_counts=text_counts
        )

    def _note_seen(self, call: DecoderPass, action: Action, tokens: Tokens) -> None:
        for (m, row, span), n in zip(call.names or [], tokens.counts):
            key = (action.order, row, span)
            call.records[m].seen[key] = call.records[m].seen.get(key, 0) + n

    def _text(self, call: DecoderPass, layout: Rows, hidden: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Hidden states of the text tokens, packed, and how many each row has."""
        is_text = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        is_text[layout.row, layout.slot] = False
        real = self._real(call)
        is_text = is_text if real is None else is_text & real
        return hidden[is_text], tuple(int(n) for n in is_text.sum(1).tolist())

    @staticmethod
    def _real(call: DecoderPass) -> Tensor | None:
        """``(B, P)`` bool: tokens present that are no padding, neither the prompt's nor ours; None: all."""
        layout, present = call.layout, call.present
        if layout is None or layout.index is None:
            return present
        if present is None:
            return layout.valid
        real = present.gather(1, layout.index)
        return real if layout.valid is None else real & layout.valid

    def _advance(self, call: DecoderPass, entry: Any, watching: bool) -> KVIndex | None:
        """Tell a compact entry what it is about to receive; what the layer's keys will be, if that is not everything."""
        layout = call.layout
        if isinstance(entry, CompactMixin):
            old = entry.kv
            if layout is None:
                entry.kv = call.once(("append", id(old)), (old,), lambda: old.append(call.length))
            else:
                shift = self._shift(call, old)
                entry.kv = call.once(
                    ("rows", id(old), id(layout), watching),
                    (old, layout),
                    lambda: old.append_rows(layout, shift, watching),
                )
            return entry.kv
        if call.reduced:
            assert layout is not None
            return KVIndex(call.length, 0, layout.index, layout.valid)
        return None

    def _derive(self, call: DecoderPass, layer: nn.Module, entry: Any, keys: KVIndex | None, hidden: Tensor, kwargs: Any) -> Any:
        """Arguments of a layer for the tokens present."""
        if keys is None:
            return kwargs
        new, layout = dict(kwargs), call.layout
        reduced = layout is not None and layout.index is not None
        config: Any = layer.get_submodule(self.spec.attention).config
        for name, axis in self.spec.layer_args.items():
            value = kwargs.get(name)
            if axis == "mask":
                visible = entry.visible if isinstance(entry, CompactMixin) else None
                new[name] = call.once(
                    ("mask", id(value), id(layout), id(keys), id(visible)),
                    (value, layout, keys, visible),
                    lambda value=value, visible=visible: self._mask(call, value, keys, visible, config, hidden),
                )
            elif value is not None and reduced:
                assert layout is not None
                new[name] = call.once(
                    (name, id(value), id(layout)), (value, layout), lambda value=value, axis=axis: _take(value, axis, layout)
                )
        known = {*self.spec.layer_args, "hidden_states"}
        for name, value in kwargs.items() if reduced else ():
            if name not in known and isinstance(value, Tensor) and call.length in value.shape and call.length > 1:
                raise UnsupportedSiteError(
                    f"{type(layer).__name__} takes {name!r} {tuple(value.shape)}, which the family "
                    f"{self.family.model_type!r} does not describe: add its token axis to Decoder.layer_args"
                )
        if self.renumber and (reduced or keys.shift is not None):
            new["position_embeddings"] = call.once(
                ("rotary", id(layout), id(keys.shift)),
                (layout, keys.shift),
                lambda: self._rotary(call, keys, hidden),
            )
        return new

    def _mask(self, call: DecoderPass, value: Any, keys: KVIndex, visible: Any, config: Any, hidden: Tensor) -> Any:
        padded = keys.valid is not None or (visible is not None and visible.valid is not None)
        if value is None and not padded and (call.length == 1 or call.past == 0):
            return None
        layout, device = call.layout, hidden.device
        k = keys.view(call.batch, device)
        k = k if visible is None else k.through(visible)
        if layout is not None and layout.index is not None:
            q = View(layout.index, layout.valid)
        else:
            q = View(torch.arange(call.length, device=device).expand(call.batch, -1), None)
        return derive(value, q, k, keys.total, call.past, kind_of(real_implementation(config)), hidden.dtype)

    def _shift(self, call: DecoderPass, old: KVIndex) -> Tensor | None:
        if not (self.renumber and call.reduced):
            return old.shift
        _, shift = self._renumbered(call)
        return shift if old.shift is None else shift + old.shift

    def _renumbered(self, call: DecoderPass) -> tuple[Tensor, Tensor]:
        ids, layout = call.position_ids, call.layout
        if ids is None or layout is None:
            raise InputError("position ids of this forward are unknown: the rotary embedding was not called")
        result: tuple[Tensor, Tensor] = call.once(
            ("renumbered", id(layout)), (layout,), lambda: renumbered(ids, layout, call.present)
        )
        return result

    def _rotary(self, call: DecoderPass, keys: KVIndex, hidden: Tensor) -> Any:
        """Rotary embeddings of renumbered tokens."""
        assert call.position_ids is not None
        if call.reduced:
            ids, shift = self._renumbered(call)
            earlier = None if keys.shift is None else keys.shift - shift
        else:
            ids, earlier = call.position_ids, keys.shift
        if earlier is not None:
            ids = ids - earlier[None, :, None]
        rotary = self.model.get_submodule(self.spec.rotary)
        return rotary(hidden, ids if ids.shape[0] > 1 else ids[0])

    def _read(self, call: DecoderPass, i: int, layer: nn.Module, hidden: Tensor, keys: KVIndex | None) -> None:
        """Say what the layer's attention is to be read for."""
        call.readings.pop(i - 2, None)
        decoding = call.layout is None
        signals = self._signals_of(i, decode=decoding)
        if decoding and not isinstance(keys, KVIndex):
            signals = frozenset()
        flash = keys is not None and "flash" in real_implementation(layer.get_submodule(self.spec.attention).config)
        if not signals and not flash:
            return
        reading = Reading(signals, drop_positions=flash)
        if "received" in signals:
            reading.valid = self._real(call)
        width = hidden.shape[1]
        last = torch.full((call.batch,), width - 1, device=hidden.device)
        if call.last_slot is not None:
            last = last - call.last_slot
        if "last_row" in signals:
            reading.queries["last_row"] = last[:, None]
        if "text_rows" in signals:
            assert call.question is not None
            reading.queries["text_rows"] = torch.where(call.question < 0, -1, width - 1 - call.question)
        call.readings[i] = reading

    # -- decode steps -----------------------------------------------------------------------------------------------

    def _choose_visible(self, call: DecoderPass, i: int, entry: CompactMixin, cache: Any) -> None:
        """Decode sites: the subset of a cache entry that this step may see."""
        actions = [a for a in self.decode if a.site.layer <= i]
        visual = entry.kv.visual
        if not actions or visual is None or call.past == 0:
            return
        layout = replace(
            visual,
            width=entry.kv.length,
            full=entry.kv.total,
            lengths=(entry.kv.length,) * call.batch,
            index=None,
            valid=None,
        )
        for action in actions:
            if action.site.layer == i:
                call.memo["visible", action.order] = self._decode_reduction(call, action, layout, cache)
            choice = call.memo.get(("visible", action.order))
            if choice is None:
                continue
            chosen, logical = choice
            reduction = chosen if len(layout.tokens) == logical else None
            if reduction is None:
                raise UnsupportedSiteError(f"{action.site}: the cache is reduced again after this layer")
            if action is not actions[-1] and len(actions) > 1:
                raise UnsupportedSiteError("only one decode site can act on a layer: choose one of the methods")
            entry.visible = call.once(
                ("visible", id(reduction), id(visual)), (reduction, visual), lambda: _shown(layout, reduction)
            )

    def _decode_reduction(self, call: DecoderPass, action: Action, layout: Rows, cache: Any) -> tuple[Reduction, int]:
        site = action.site
        before, here = entry_of(cache, site.layer - 1), entry_of(cache, site.layer)
        reading = call.readings.get(site.layer - 1)
        if reading is None or not isinstance(before, CompactMixin) or before.kv.visual is None:
            raise UnsupportedSiteError(f"{site}: no attention to read before it")
        if len(before.kv.visual.tokens) != len(layout.tokens):
            raise UnsupportedSiteError(f"{site}: a reduction between this layer and the one before it hides their match")
        slots = replace(before.kv.visual, width=before.kv.length)
        signals = {name: _of_tokens(name, reading, slots, before.kv.length) for name in site.signals}
        call.trace.signal_flops += reading.seen.flops
        state = here.state.setdefault(str(action.order), {})
        tokens = replace(layout.tokens, signals=signals, state=state)
        reduction = action.method.reduce(tokens, site)
        call.trace.sites.append(_visit(action, tokens, reduction))
        return reduction, len(tokens)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _scatter(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        call = self.context.decoder
        if call is None or call.layout is None or call.layout.index is None:
            return None
        return call.layout.scatter(output, call.length)

    def _log(self, call: DecoderPass, hidden: Tensor, keys: KVIndex | None, entry: Any) -> None:
        visible = entry.visible if isinstance(entry, CompactMixin) else None
        n_keys = call.past + call.length if keys is None else keys.length
        n_keys = n_keys if visible is None else visible.index.shape[1]
        log = call.trace.decode if call.past and call.layout is None else call.trace.prefill
        log.append(LayerTrace(call.batch, hidden.shape[1], n_keys, call.length, call.past + call.length))


def _take(value: Any, axis: int | str, layout: Rows) -> Any:
    if isinstance(value, tuple):
        return tuple(_take(item, axis, layout) for item in value)
    assert layout.index is not None
    return take_rows(value, layout.index, int(axis))


def _shown(layout: Rows, reduction: Reduction) -> View | None:
    """The slots of a cache entry that a decode step may see."""
    shown, take = layout.reduce(reduction)
    return None if take is None else View(take, shown.valid)


def _question(visual: Tensor, present: Tensor) -> Tensor:
    """Distances from the right end of the text after each row's last visual token: ``(B, R)``, -1 where there is less."""
    length = visual.shape[1]
    place = torch.arange(length)
    after = torch.where(visual, place, -1).amax(1, keepdim=True) < place
    distance = torch.where(after & present, length - 1 - place, -1).flip(1).sort(1, descending=True).values
    return distance[:, : int((after & present).sum(1).max())].contiguous()


def _of_tokens(name: str, reading: Reading, layout: Rows, width: int) -> Tensor:
    """A signal of the visual tokens: they are among the last ``width`` keys of the attention that was read."""
    seen = reading.seen
    if name in ("keys", "values"):
        return layout.pick(torch.cat(getattr(seen, name))[:, :, -width:].transpose(1, 2).contiguous())
    if name == "received":
        return layout.pick(torch.cat(seen.received)[:, -width:].contiguous())
    rows = torch.cat(seen.rows[name])[..., -width:]  # (B, H, R, K)
    if name == "last_row":
        return layout.pick(rows[:, :, 0].transpose(1, 2).contiguous())
    return layout.pick(rows[:, 0].transpose(1, 2).contiguous())


def _visit(action: Action, tokens: Tokens, reduction: Reduction) -> SiteTrace:
    return SiteTrace(
        str(action.site),
        action.method.name(),
        tokens.counts,
        reduction.counts,
        action.method.flops(tokens, action.site),
        tokens.index[reduction.keep],
        tokens.spans.shape,
    )


def _weigh(trace: Trace, cache: Any) -> None:
    """Bytes held by the cache tensors, and what full-length ones would take."""
    held = full = 0
    lengths = []
    for entry in getattr(cache, "layers", []):
        keys = getattr(entry, "keys", None)
        if not isinstance(keys, Tensor) or keys.dim() != 4 or keys.shape[-2] == 0:
            continue
        size = keys.nbytes + entry.values.nbytes
        held += size
        lengths.append(keys.shape[-2])
        total = entry.kv.total if isinstance(entry, CompactMixin) else keys.shape[-2]
        full += size // keys.shape[-2] * total
    trace.kv_bytes, trace.full_kv_bytes, trace.kv_lengths = held, full, lengths
    trace.kv_total = cache.get_seq_length() if lengths else 0


