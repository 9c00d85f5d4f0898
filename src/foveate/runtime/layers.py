"""How decoder layers are called: with arguments of ours where tokens are missing, as stock code says where nothing changes.

Most forwards bring one generated token. What every layer will see of the cache is known when such a forward begins, or, with a
decode site, once that has chosen. As its cache entry holds just that, nothing is left to do for a layer but to cut a mask, if
there is one; a layer without is called as if no method were there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from foveate.runtime.arguments import LayerArguments
from foveate.runtime.cache import CompactMixin, KVIndex, entry_of, held_by
from foveate.runtime.context import Context, DecoderPass, Settled
from foveate.runtime.hooks import Hooks, first_argument, refuse_copy
from foveate.runtime.notes import log_of, note_of
from foveate.runtime.reads import Reads
from foveate.runtime.recurrent import attention_of
from foveate.runtime.signals.kernel import is_flash
from foveate.runtime.steady import Cut, Steady
from foveate.runtime.steps import DecodeSite, put_in_order


class LayerCalls:
    """Calls the decoder layers, and the norm after the last one.

    Args:
        before: ``(layer, module, args, kwargs)`` -> arguments of a layer that has not been settled, or None: as they are.
        reads: what is read of the layers.
        step: the site that chooses what generated tokens see, or None.
        settles: whether all that layers see of a step is in their cache entries.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        context: Context,
        arguments: LayerArguments,
        before: Callable[..., Any],
        reads: Reads,
        step: DecodeSite | None,
        settles: bool,
    ) -> None:
        self.layers, self.context, self.arguments, self.before = layers, context, arguments, before
        self.reads, self.step = reads, step
        spec = arguments.spec
        self.attentions = [attention_of(layer, spec) for layer in layers]
        self.settles, self.steady = settles and not spec.shared, Steady()
        #: an attention whose kernel may count a window in keys that are there, or None
        self.slides: Any = next((a for a in self.attentions if getattr(a, "sliding_window", None) is not None), None)
        self.given: Callable[..., Any] = torch.compiler.disable(self.changed)

    def attach(self, hooks: Hooks) -> None:
        """Wrap the forward of every layer: torch takes a slower way through a module that has hooks."""
        for i, layer in enumerate(self.layers):
            hooks.swap(layer, "forward", _Layer(self, i, layer))

    def attach_norm(self, hooks: Hooks, norm: nn.Module, last: Callable[..., Any]) -> None:
        """Wrap that of the norm, which ``last(stock, *args, **kwargs)`` calls wherever tokens may be missing."""
        hooks.swap(norm, "forward", _Norm(self.steady, norm, last))

    def begin(self, call: DecoderPass, cache: Any) -> None:
        """Say of a forward that begins what its layers will see, if it brings one token to a cache."""
        step = cache is not None and call.past > 0 and call.length == 1 and call.layout is None
        if step and self.settles and (self.slides is None or not is_flash(self.slides)):
            self._settle(call, cache, 0, len(self.layers) if self.step is None else self.step.layer)
            call.cache = cache
        settled = call.settled.values()
        kinds, known = {*settled}, len(settled) == len(self.layers)
        steady = known and all(each.all for each in kinds)
        cuts = known and all(_only_masks(each.keys, each.entry) for each in kinds)
        self.steady.enter(steady, [each.cut for each in settled] if cuts else [], call.ready)

    def _settle(self, call: DecoderPass, cache: Any, start: int, end: int) -> None:
        """Look at what these layers will see. Those whose entries hold the same are looked at once."""
        alike: dict[Any, list[int]] = {}
        entry_of(cache, end - 1)  # which makes all before it
        entries: list[Any] = [None if self.attentions[i] is None else cache.layers[i] for i in range(start, end)]
        for i, entry in enumerate(entries, start):
            alike.setdefault(held_by(entry), []).append(i)
        for layers in alike.values():
            settled = self._look(call, layers[0], [entries[i - start] for i in layers], cache)
            call.settled.update(dict.fromkeys(layers, settled))
        log_of(call).extend([call.settled[i].note for i in range(start, end)])

    def _look(self, call: DecoderPass, i: int, entries: list[Any], cache: Any) -> Settled:
        """The same of layers whose ``entries`` hold the same, of which ``i`` is the first."""
        entry = entries[0]
        keys = self.arguments.advance(call, entry, False)
        visible = None
        if isinstance(entry, CompactMixin) and keys is not None:
            visible = None if self.step is None else self.step.show(call, i, entry, keys, cache)
            if visible is not None and (ordered := put_in_order(entries, keys, cache)) is not None:
                keys, visible = ordered
                entry.coming = keys
            for each in entries:
                each.coming, each.visible = entry.coming, visible
        sees_all = keys is None or (keys.plain and (visible is None or visible.valid is None))
        cut = _cut(keys) if visible is None and _only_masks(keys, entry) else None
        return Settled(keys, entry, sees_all, note_of(call, 1, keys, entry), cut)

    def changed(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what layer ``i`` is called with, in place of these arguments; None: with these."""
        call = self.context.decoder
        if call is None:
            return None
        if i not in call.settled:
            if call.cache is None:
                return self.before(i, layer, args, kwargs)
            self._settle(call, call.cache, i, len(self.layers))  # the choice has been made
            self.steady.enter(all(each.all for each in {*call.settled.values()}), [], call.ready)
        settled = call.settled[i]
        if self.step is not None and i == self.step.layer - 1:  # whose attention chooses
            self.reads.begin(call, i, first_argument(args, kwargs, "hidden_states"), settled.keys, settled.entry)
        if settled.keys is None:
            return None
        if len(args) < 2:
            mask, known = kwargs.get(self.arguments.mask), settled.given
            if mask is None and settled.all:
                return None
            if known is not None and known.mask is mask and known.tables is kwargs.get("position_embeddings"):
                return args, {**kwargs, **known.changed}
        return self.arguments.of_step(call, i, layer, settled, args, kwargs)


def _only_masks(keys: KVIndex | None, entry: Any) -> bool:
    """Tell whether no more than a mask is to be cut for a layer, and that is one of the full sequence: no window has ended."""
    return keys is None or (keys.at_home and (entry.window is None or keys.total <= entry.window + 1))


def _cut(keys: KVIndex | None) -> Cut | None:
    """Return what a mask keeps for the token of a step; None: all."""
    return None if keys is None or keys.whole else Cut(keys.index, keys.total - keys.tail, keys.valid)


class _Forward:
    """The forward of a module while a method is attached."""

    def __init__(self, steady: Steady, module: nn.Module) -> None:
        self.steady, self.module, self.stock = steady, module, module.forward
        update_wrapper(self, self.stock)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.stock(*args, **kwargs)

    def __reduce__(self) -> NoReturn:
        refuse_copy()


class _Layer(_Forward):
    """That of a decoder layer."""

    def __init__(self, calls: LayerCalls, i: int, layer: nn.Module) -> None:
        super().__init__(calls.steady, layer)
        self.calls, self.i, self.mask = calls, i, calls.arguments.mask

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        named = len(args) < 2
        mask = kwargs.get(self.mask)
        if named and mask is None and self.steady.now:
            return self.stock(*args, **kwargs)
        compiling = torch.compiler.is_compiling()
        if compiling and named and self.steady.cuts and isinstance(mask, Tensor) and mask.dim() == 4:
            if (cut := self.steady.cuts[self.i]) is not None:  # in the graph itself
                kwargs = {**kwargs, self.mask: cut.of(mask)}
            return self.stock(*args, **kwargs)
        changed = (self.calls.given if compiling else self.calls.changed)(self.i, self.module, args, kwargs)
        return self.stock(*args, **kwargs) if changed is None else self.stock(*changed[0], **changed[1])


class _Norm(_Forward):
    """That of the norm after the last layer, before which tokens may be missing."""

    def __init__(self, steady: Steady, norm: nn.Module, last: Callable[..., Any]) -> None:
        super().__init__(steady, norm)
        self.last: Callable[..., Any] = torch.compiler.disable(last)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.steady.now or self.steady.cuts:
            return self.stock(*args, **kwargs)
        return self.last(self.stock, *args, **kwargs)
