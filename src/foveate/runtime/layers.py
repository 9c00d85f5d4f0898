"""How decoder layers are called: with arguments of ours where tokens are missing, as stock code says where nothing changes.

Most forwards bring one generated token. What every layer will see of the cache is known when such a forward begins, or, with a
decode site, once that has chosen. As its cache entry holds just that, nothing is left to do for a layer but to cut a mask, if
there is one; a layer without is called as if no method were there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from foveate.runtime.arguments import LayerArguments
from foveate.runtime.cache import CompactMixin, KVIndex, entry_of
from foveate.runtime.context import Context, DecoderPass, Settled
from foveate.runtime.hooks import Hooks, refuse_copy
from foveate.runtime.layout import take_rows
from foveate.runtime.notes import log_layers
from foveate.runtime.recurrent import attention_of
from foveate.runtime.signals.kernel import is_flash
from foveate.runtime.steps import DecodeSite


class Cut(NamedTuple):
    """What a mask of the full sequence keeps for a generated token.

    Attributes:
        places: ``(B, P)`` those before ``start``.
        start: all places from there on stay.
        valid: ``(B, P)`` bool, False for padding of ours; None: there is none.
    """

    places: Tensor
    start: int
    valid: Tensor | None

    def of(self, mask: Tensor) -> Tensor:
        """``(B, 1, 1, P')`` of a mask ``(B or 1, 1, 1, T)``."""
        mask = mask.expand(len(self.places), -1, -1, -1)
        kept = take_rows(mask[..., : self.start], self.places, 3)
        if self.valid is not None:
            hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            kept = kept.masked_fill(~self.valid[:, None, None, :], hidden)
        return torch.cat([kept, mask[..., self.start :]], -1)


class Steady:
    """What forwards in flight leave to do for the layers, as plain attributes, which compiled code can be chosen by.

    Attributes:
        now: no thread is in a forward that changes more than the masks of its layers.
        cuts: of one thread that is alone, if nothing but their masks changes: for each layer what its mask keeps, or None: all.
            Nothing here, if there are several threads.
    """

    def __init__(self) -> None:
        self.now = True
        self.cuts: list[Cut | None] = []
        self._lock = threading.Lock()
        self._inside: dict[int, bool] = {}

    def enter(self, steady: bool, cuts: list[Cut | None]) -> None:
        """This thread begins a forward."""
        with self._lock:
            self._inside[threading.get_ident()] = steady
            self.now = all(self._inside.values())
            self.cuts = cuts if len(self._inside) == 1 else []

    def leave(self) -> None:
        """Its forward has ended."""
        with self._lock:
            self._inside.pop(threading.get_ident(), None)
            self.now, self.cuts = all(self._inside.values()), []


class LayerCalls:
    """Calls the decoder layers.

    Args:
        before: ``(layer, module, args, kwargs)`` -> arguments of a layer that has not been settled, or None: as they are.
        step: the site that chooses what generated tokens see, or None.
        settles: whether all that layers see of a step is in their cache entries.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        context: Context,
        arguments: LayerArguments,
        before: Callable[..., Any],
        step: DecodeSite | None,
        settles: bool,
    ) -> None:
        self.layers, self.context, self.arguments, self.before, self.step = layers, context, arguments, before, step
        spec = arguments.spec
        self.attentions = [attention_of(layer, spec) for layer in layers]
        self.settles, self.steady = settles and not spec.shared, Steady()
        #: an attention whose kernel may count a window in keys that are there, or None
        self.slides: Any = next((a for a in self.attentions if getattr(a, "sliding_window", None) is not None), None)
        (self.mask,) = (name for name, axis in spec.layer_args.items() if axis == "mask")
        self.given: Callable[..., Any] = torch.compiler.disable(self.changed)

    def attach(self, hooks: Hooks) -> None:
        """Wrap the forward of every layer: torch takes a slower way through a module that has hooks."""
        for i, layer in enumerate(self.layers):
            hooks.swap(layer, "forward", _Layer(self, i, layer))

    def begin(self, call: DecoderPass, cache: Any) -> None:
        """Say of a forward that begins what its layers will see, if it brings one token to a cache."""
        step = cache is not None and call.past > 0 and call.length == 1 and call.layout is None
        if step and self.settles and (self.slides is None or not is_flash(self.slides)):
            self._settle(call, cache, 0, len(self.layers) if self.step is None else self.step.layer - 1)
            call.cache = cache
        settled = call.settled.values()
        known = len(settled) == len(self.layers)
        by_mask = known and all(each.keys is None or each.keys.at_home for each in settled)
        cuts = [_cut(each.keys) for each in settled] if by_mask else []
        self.steady.enter(known and all(each.all for each in settled), cuts)

    def _settle(self, call: DecoderPass, cache: Any, start: int, end: int) -> None:
        alike: dict[int, tuple[KVIndex, Any, bool]] = {}  # by what entries hold: of one, what it comes to
        for i in range(start, end):
            entry: Any = None if self.attentions[i] is None else entry_of(cache, i)
            held = entry.kv if isinstance(entry, CompactMixin) and not entry.is_sliding else None
            if entry is not None and id(held) in alike:
                coming, shown, sees_all = alike[id(held)]
                entry.coming, entry.visible = coming, shown
                call.settled[i] = Settled(coming, entry, sees_all)
                continue
            keys = self.arguments.advance(call, entry, False)
            visible = None
            if isinstance(entry, CompactMixin) and keys is not None:
                visible = None if self.step is None else self.step.show(call, i, entry, keys, cache)
                entry.visible = visible
            sees_all = keys is None or (keys.plain and (visible is None or visible.valid is None))
            call.settled[i] = Settled(keys, entry, sees_all)
            if held is not None and keys is not None:
                alike[id(held)] = keys, visible, sees_all
        log_layers(call, 1, [(call.settled[i].keys, call.settled[i].entry) for i in range(start, end)])

    def changed(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what layer ``i`` is called with, in place of these arguments; None: with these."""
        call = self.context.decoder
        if call is None:
            return None
        if i not in call.settled:
            if call.cache is None or self.step is None or i < self.step.layer:
                return self.before(i, layer, args, kwargs)
            self._settle(call, call.cache, i, len(self.layers))  # the choice has been made
            self.steady.enter(all(each.all for each in call.settled.values()), [])
        settled = call.settled[i]
        if settled.keys is None or (settled.all and len(args) < 2 and kwargs.get(self.mask) is None):
            return None
        return self.arguments.of_step(call, i, layer, settled, args, kwargs)


def _cut(keys: KVIndex | None) -> Cut | None:
    """Return what a mask keeps for a token that sees ``keys``; None: all."""
    return None if keys is None or keys.index is None else Cut(keys.index, keys.total - keys.tail, keys.valid)


class _Layer:
    """The forward of a decoder layer while a method is attached."""

    def __init__(self, calls: LayerCalls, i: int, layer: nn.Module) -> None:
        self.calls, self.i, self.layer, self.stock = calls, i, layer, layer.forward
        self.steady, self.mask = calls.steady, calls.mask
        update_wrapper(self, self.stock)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        if len(args) < 2:
            mask = kwargs.get(self.mask)
            if mask is None and self.steady.now:
                return self.stock(*args, **kwargs)
            if compiling and self.steady.cuts and isinstance(mask, Tensor) and mask.dim() == 4:  # in the graph itself
                if (cut := self.steady.cuts[self.i]) is not None:
                    kwargs = {**kwargs, self.mask: cut.of(mask)}
                return self.stock(*args, **kwargs)
        changed = (self.calls.given if compiling else self.calls.changed)(self.i, self.layer, args, kwargs)
        return self.stock(*args, **kwargs) if changed is None else self.stock(*changed[0], **changed[1])

    def __reduce__(self) -> NoReturn:
        refuse_copy()
