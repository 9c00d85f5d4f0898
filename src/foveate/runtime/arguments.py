"""What a decoder layer is called with: mask, rotary embeddings and cache entry follow the layout in force."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InputError, UnsupportedModelError, UnsupportedSiteError
from foveate.models.family import Family
from foveate.ops.segments import offsets
from foveate.runtime.appending import limit_of_new
from foveate.runtime.cache import CompactMixin, KVIndex
from foveate.runtime.context import DecoderPass, Given, Settled
from foveate.runtime.facts import Facts
from foveate.runtime.hooks import by_name, by_position, first_argument
from foveate.runtime.layout import Rows, take_rows
from foveate.runtime.masks import Kind, View, derive, kind_of, weighed
from foveate.runtime.positions import renumbered
from foveate.runtime.recurrent import attention_of
from foveate.runtime.samples import NUMBERS
from foveate.runtime.sight import limit_of
from foveate.runtime.signals.kernel import real_implementation


class LayerArguments:
    """Derives the arguments of reduced layers from those that stock code passes."""

    def __init__(self, family: Family, model: nn.Module, renumber: bool) -> None:
        self.family, self.spec, self.renumber, self.facts = family, family.decoder, renumber, Facts(family)
        self.model, self.rotary = model, model.get_submodule(family.decoder.rotary)
        (self.mask,) = (name for name, axis in family.decoder.layer_args.items() if axis == "mask")
        self.whole: Any = model  # the one that computes the loss; `attach` says which that is
        config: Any = model.config
        self.kinds: Sequence[str] = getattr(config, self.spec.kinds) if self.spec.kinds else ()

    def advance(self, call: DecoderPass, entry: Any, watching: bool) -> KVIndex | None:
        """Tell a compact entry what it is about to receive; what the layer's keys will be, or None: all of them."""
        if isinstance(entry, CompactMixin) and call.layout is None and not entry.is_sliding:
            entry.coming = entry.kv.append(call.length)
            return entry.coming
        layout = call.attended
        if not isinstance(entry, CompactMixin):
            if layout is None or (layout.index is None and not layout.has_mask):
                return None
            return call.memo.once("rows", (layout,), lambda: KVIndex(0, 0).append_rows(layout, None, False))
        old, window = entry.kv, entry.window
        if window is not None:
            held = entry.held()
            old = call.memo.once(f"last {held.length}", (old,), lambda: held)
        if layout is None:
            entry.coming = new = old.append(call.length)
            return self._seen(call, new, window, call.length)
        shift = old.shift
        if self.renumber and call.reduced is not None:
            _, here = self._renumbered(call)
            shift = here if shift is None else call.memo.once("shift", (here, shift), partial(torch.add, here, shift))
        name = "watched rows" if watching else "rows"
        entry.coming = new = call.memo.once(name, (old, layout), lambda: old.append_rows(layout, shift, watching))
        return self._seen(call, new, window, layout.width)

    @staticmethod
    def _seen(call: DecoderPass, kv: KVIndex, window: int | None, new: int) -> KVIndex:
        """What attention sees of an entry that ``new`` tokens join, and which holds no more than ``window`` of the past."""
        return kv if window is None else call.memo.once(f"seen {window + new}", (kv,), lambda: kv.last(window + new))

    def derive(
        self,
        call: DecoderPass,
        i: int,
        layer: nn.Module,
        entry: Any,
        keys: KVIndex | None,
        hidden: Tensor,
        args: Any,
        kwargs: Any,
    ) -> dict[str, Any]:
        """Return the keyword arguments of layer ``i``, whose attention sees ``keys``.

        ``hidden`` is what is present, or the last rows of it, where stock code goes on with these.
        """
        new = {**kwargs, **self.of_rows(call, kwargs, hidden.shape[1])}
        if keys is None:
            return new
        layout, width = call.fewer, hidden.shape[1] if call.members is None else call.members.outer.width
        attention: Any = attention_of(layer, self.spec)
        if attention is not None:
            self._refuse_windows(attention, entry, keys)
        causal = bool(getattr(attention, "is_causal", True))
        kind = "keys" if attention is None else kind_of(real_implementation(attention.config))
        sees = attention is not None  # a layer with a state takes all that comes
        if sees and kind == "keys" and call.attended is not None and call.attended.sight is not None:
            raise UnsupportedModelError(
                "flash attention takes no mask of pairs of tokens, which a method asks for that says who may see whom: use "
                "sdpa, eager or flex attention"
            )
        biased = call.attended is not None and call.attended.bias is not None
        if biased and (not sees or kind not in ("bool", "float")):
            what = (
                "a layer that carries a state has no logits"
                if not sees
                else f"{real_implementation(attention.config)} takes no mask"
            )
            raise UnsupportedModelError(
                f"{what} to add the logarithm of a gate to, as this method's training does: train it with sdpa or eager "
                "attention, on a model whose layers all have it"
            )
        for name, axis in self.spec.layer_args.items():
            value = kwargs.get(name)
            if axis == "mask":
                visible = entry.visible if isinstance(entry, CompactMixin) else None
                new[name] = call.memo.once(
                    f"{name} {kind} {width} {sees}",
                    (value, layout, keys, visible),
                    partial(
                        self._mask,
                        call,
                        value,
                        keys if sees else replace(keys, groups=None),
                        visible,
                        kind,
                        causal,
                        hidden,
                        width,
                    ),
                )
            elif axis != "own" and value is not None and layout is not None:
                self.facts.check_axis(name, value, axis, (call.length, call.rows))
                new[name] = call.memo.once(
                    f"{name} {width}", (value, layout), partial(_take, value, axis, layout, width)
                )
        if layout is not None:
            for name in NUMBERS:
                if isinstance(kwargs.get(name), Tensor) and name not in self.spec.layer_args:
                    new[name] = call.memo.once(
                        name, (kwargs[name], layout), partial(_take, kwargs[name], 1, layout, width)
                    )
            self._refuse_unknown(call, layer, args, kwargs)
            if kind == "keys" and attention is not None and call.samples is not None and call.samples.several:
                new |= call.memo.once("borders", (layout,), partial(_borders, call, layout))
        turns = attention is not None and kwargs.get("position_embeddings") is not None
        if self.renumber and turns and (layout is not None or keys.shift is not None):
            ids = call.memo.once("positions", (layout, keys.shift), lambda: self._positions(call, keys))
            if ids.shape[-1] > width:
                ids = call.memo.once(f"last {width}", (ids,), partial(ids.narrow, -1, ids.shape[-1] - width, width))
            if ids.shape[0] == 1 and "position_ids" in new:
                new["position_ids"] = ids[0]
            own = (self.kinds[i],) if self.kinds else ()
            rotary = self.rotary
            if self.spec.rotary_of is not None:
                rotary = self.model.get_submodule(self.spec.rotary_of(self.model.config, i))
            new["position_embeddings"] = call.memo.once(
                f"rotary {own} {id(rotary)}", (ids,), lambda: rotary(hidden, ids if ids.shape[0] > 1 else ids[0], *own)
            )
        return new

    def of_step(
        self,
        call: DecoderPass,
        i: int,
        layer: nn.Module,
        settled: Settled,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """Return the arguments of layer ``i`` for a generated token; what changes is noted for layers that see the same."""
        positional = len(args)
        args, kwargs = by_name(layer, args, kwargs)
        mask, tables = kwargs.get(self.mask), kwargs.get("position_embeddings")
        given = settled.given
        if given is None or given.mask is not mask or given.tables is not tables:
            cut, keys = settled.cut, settled.keys
            if cut is not None and keys is not None and isinstance(mask, Tensor) and mask.shape[2:] == (1, keys.total):
                changed = {self.mask: cut.of(mask)}
            else:
                hidden = first_argument(args, kwargs, "hidden_states")
                new = self.derive(call, i, layer, settled.entry, keys, hidden, args, kwargs)
                changed = {name: value for name, value in new.items() if value is not kwargs.get(name)}
            given = settled.given = Given(mask, tables, changed)
        return by_position(layer, positional, args, {**kwargs, **given.changed})

    def tables(self, call: DecoderPass, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines ``(B, P, d)`` of the tokens present, if a layer that is called with ``kwargs`` is given such."""
        given, axis = kwargs.get("position_embeddings"), self.spec.layer_args.get("position_embeddings")
        if not isinstance(given, tuple) or axis is None:
            return None
        layout = call.reduced
        given = given if layout is None else _take(given, axis, layout, layout.width)
        if all(x.dim() == 4 for x in given):
            given = self._of_sections(given)
        if any(x.dim() != 3 for x in given):
            return None
        cos, sin = given
        return cos.expand(call.batch, -1, -1), sin.expand(call.batch, -1, -1)

    def _of_sections(self, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """``(B, P, d)`` of tables of time, height and width, ``(3, B, P, d)``; attention joins them in transformers 5.16."""
        rope = getattr(getattr(self.rotary, "config", None), "rope_parameters", None) or {}
        if not (sections := rope.get("mrope_section")):
            return tables
        return tuple(
            torch.cat([part[i % 3] for i, part in enumerate(x.split([*sections, *sections], -1))], -1) for x in tables
        )

    def of_rows(self, call: DecoderPass, kwargs: dict[str, Any], width: int) -> dict[str, Any]:
        """Those arguments that a layer needs for its own rows, where its attention sees others as well."""
        layout = call.reduced
        own = [name for name, axis in self.spec.layer_args.items() if axis == "own" and kwargs.get(name) is not None]
        if layout is None:
            return {}
        for name in own:
            self.facts.check_axis(name, kwargs[name], "own", (call.length, call.rows))
        return {name: _take(kwargs[name], "own", layout, width) for name in own}

    @staticmethod
    def _refuse_windows(attention: Any, entry: Any, keys: KVIndex) -> None:
        """Flash kernels count a window in keys that are there; it is one of positions, like every mask."""
        if "flash" not in real_implementation(attention.config):
            return
        window = getattr(attention, "sliding_window", None)
        if window is None and isinstance(entry, CompactMixin) and entry.is_sliding:
            window = entry.sliding_window
        if window is not None and keys.total > window:
            raise UnsupportedModelError(
                f"flash attention slides a window of {window} tokens over those that are left, which is not the window of this "
                "model: use sdpa or eager attention, or prompts shorter than the window"
            )

    def _refuse_unknown(self, call: DecoderPass, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """A tensor as long as the sequence that the family does not describe would not fit the tokens present."""
        known = {*self.spec.layer_args, *NUMBERS, "hidden_states"}
        others = {f"argument {i}": value for i, value in enumerate(args) if i}
        others |= {name: value for name, value in kwargs.items() if name not in known}
        for name, value in others.items():
            if not isinstance(value, Tensor) or call.length not in value.shape or call.length == 1:
                continue
            if not self._of_the_loss(name, layer):
                raise UnsupportedSiteError(
                    f"{type(layer).__name__} takes {name!r} {tuple(value.shape)}, which the family "
                    f"{self.family.name!r} does not describe: add its token axis to Decoder.layer_args"
                )

    def _of_the_loss(self, name: str, layer: nn.Module) -> bool:
        """Tell whether an argument is there for the loss alone.

        Stock code hands all keywords of a call on to everything below it, as it hands them to the loss, where the tokens
        are full length again (`shift_labels` and the like). What the loss function names, and the layer does not, is its own.
        """
        loss = getattr(self.whole, "loss_function", None)
        if loss is None or name in inspect.signature(layer.forward).parameters:
            return False
        return name in inspect.signature(loss).parameters

    def _mask(
        self,
        call: DecoderPass,
        value: Any,
        keys: KVIndex,
        visible: View | None,
        kind: Kind,
        causal: bool,
        hidden: Tensor,
        width: int,
    ) -> Any:
        layout, device = call.fewer, hidden.device
        groups, limits = keys.groups, []
        padded = keys.valid is not None or (visible is not None and visible.valid is not None) or groups is not None
        bias = None if call.attended is None else call.attended.bias
        plain = value is None and not padded and bias is None
        if plain and (width == 1 or (call.past == 0 and width == keys.length)):
            return None
        k = keys.view(call.batch, device)
        sighted = call.attended is not None and call.attended.sight is not None
        groups = None if groups is None else groups.up_to(keys.length)
        if groups is not None and not sighted:  # all that comes is text to what is there
            k = k.without(groups.hidden.to(device))
        k = k if visible is None else k.through(visible)
        if layout is not None and layout.index is not None:
            cut = layout.width - width
            q = View(layout.index[:, cut:], None if layout.valid is None else layout.valid[:, cut:])
        else:
            q = View(torch.arange(call.length - width, call.length, device=device).expand(call.batch, -1), None)
        if groups is not None and sighted and call.attended is not None:
            limits.append(limit_of(call.attended, groups, q.index + call.past, k.index))
        if layout is not None and layout.tokens.marks is not None:
            limits.append(limit_of_new(layout, width, keys.length))
        if bias is None or call.attended is None:
            return derive(value, q, k, keys.total, call.past, kind, hidden.dtype, causal, limits)
        limits.append(
            lambda b, i, j: torch.ones_like(b + i + j, dtype=torch.bool)
        )  # a mask that something can be added to
        mask = derive(value, q, k, keys.total, call.past, kind, hidden.dtype, causal, limits)
        return weighed(mask, call.attended.per_row(bias[:, None])[..., 0], hidden.dtype)

    def _renumbered(self, call: DecoderPass) -> tuple[Tensor, Tensor]:
        ids, layout = call.position_ids, call.layout
        if ids is None or layout is None:
            raise InputError("position ids of this forward are unknown: the rotary embedding was not called")
        if call.names is not None and ids.shape[0] > 1:
            raise InputError(
                'positions="renumber" cannot follow an image that chunked prefill cuts, where positions have several axes: '
                'use positions="keep" or prefill_chunk_size=None'
            )
        return call.memo.once("renumbered", (layout,), lambda: renumbered(ids, layout, call.present))

    def _positions(self, call: DecoderPass, keys: KVIndex) -> Tensor:
        """``(A, B, P)`` position ids of renumbered tokens; tokens cached before may have moved the start already."""
        if call.reduced is not None:
            ids, shift = self._renumbered(call)
            earlier = None if keys.shift is None else keys.shift - shift
        else:
            assert call.position_ids is not None
            ids, earlier = call.position_ids, keys.shift
        return ids if earlier is None else ids - earlier[None, :, None]


def _borders(call: DecoderPass, layout: Rows) -> dict[str, Any]:
    """Return what tells flash kernels where the samples of a row end: the position ids that told them have gaps now."""
    if call.batch > 1 or call.past or call.samples is None:
        raise UnsupportedModelError(
            "flash attention takes the borders of packed samples in one row and without a cache only: pack all samples into "
            "one row, or use sdpa or eager attention"
        )
    lengths = call.samples.lengths(layout.tokens)
    ends = torch.tensor(offsets(lengths), dtype=torch.int32).to(layout.row.device, non_blocking=True)
    return dict(cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=max(lengths), max_length_k=max(lengths))


def _take(value: Any, axis: int | str, layout: Rows, width: int) -> Any:
    """Those of the last ``width`` tokens of a layout; stock code may give the last ones of the sequence only."""
    if isinstance(value, tuple):
        return tuple(_take(item, axis, layout, width) for item in value)
    own = axis == "own"
    at = 1 if own else int(axis)
    assert layout.index is not None
    index = (layout.index if own else layout.positions())[:, layout.width - width :]
    missing = layout.full - value.shape[at]
    return take_rows(value, (index - missing).clamp(min=0) if missing else index, at)
