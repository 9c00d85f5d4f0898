"""Decoder layers that attend with the queries and keys of an earlier one (`foveate.answers.Reuse`).

What the kernel of the earlier layer is given is kept until the last layer that reuses it has run. The projections of a layer
that reuses are called for the other tokens alone; if there are none, a placeholder of one head goes through norm and rotary
embedding. Keys are exchanged where they would enter the cache, queries in front of the kernel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import cache_utils
from transformers.cache_utils import Cache, DynamicLayer

from foveate.answers import Reuse
from foveate.errors import UnsupportedCacheError, UnsupportedSiteError
from foveate.models.family import Decoder, Family
from foveate.runtime.cache import CompactMixin, entry_of
from foveate.runtime.context import Action, Context, DecoderPass
from foveate.runtime.hooks import Hooks
from foveate.runtime.lent import Lent
from foveate.runtime.recurrent import attention_of
from foveate.runtime.taken import Taken
from foveate.runtime.trace import visit_of

#: actions that leave all tokens where they are
_LEAVE_ALL = ("reuse", "skip", "channels", "sight", "remember", "inject")
Exchange = Callable[[Cache | None, Tensor, Tensor, tuple[Any, ...], dict[str, Any]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Borrowed:
    """It stands for the cache of a layer, or for none, where the layer hands over the keys that it has not made."""

    cache: Cache | None
    exchange: Exchange

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.exchange(self.cache, key, value, args, kwargs)


class ReuseHooks:
    """The hooks of decoder layers that reuse what an earlier layer has computed.

    Attributes:
        of: layer -> what it takes from an earlier one.
        until: layer that lends -> the last one that takes.
    """

    def __init__(
        self, actions: Sequence[Action], layers: Sequence[nn.Module], config: Any, family: Family, context: Context
    ) -> None:
        self.layers, self.spec, self.context = layers, family.decoder, context
        self.placeholders = [int(getattr(config, name)) for name in family.modalities.values()] if actions else []
        self.actions = {action.site.layer: action for action in actions}
        self.of = {i: action.site.reuse for i, action in self.actions.items() if action.site.reuse is not None}
        self.until: dict[int, int] = {}
        for i, reuse in sorted(self.of.items()):
            self.until[reuse.source] = i

    def __bool__(self) -> bool:
        return bool(self.of)

    def touches(self, i: int) -> bool:
        """Tell whether layer ``i`` lends or takes."""
        return i in self.of or i in self.until

    def attach(self, hooks: Hooks) -> None:
        """Replace the projections of the layers that reuse."""
        for i, reuse in self.of.items():
            attention: Any = attention_of(self.layers[i], self.spec)
            for name in spared(attention, self.spec, reuse):
                run = partial(self._project, i, int(attention.head_dim))
                hooks.instead(attention.get_submodule(name), "forward", torch.compiler.disable(run))

    # -- a layer --------------------------------------------------------------------------------------------------------

    def begin(self, call: DecoderPass, i: int, entry: Any) -> Taken | None:
        """Return what layer ``i`` takes in this forward, or None, by the prompt and by its cache entry."""
        taken = self._taken(call, self.of[i], entry)
        if taken is None:
            return None
        layer: Any = self.layers[i]
        if layer.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
            raise UnsupportedSiteError(
                f"{self.actions[i].site} takes from another layer, which gradient checkpointing cannot replay: call "
                "gradient_checkpointing_disable()"
            )
        _refuse_entry(entry, taken)
        call.reusing[i] = taken
        if call.layout is not None and taken.tokens:
            self._note(call, i)
        return taken

    def _taken(self, call: DecoderPass, reuse: Reuse, entry: Any) -> Taken | None:
        layout = call.layout
        if reuse.tokens == "visual":  # generated tokens compute their own, and attend to those that are lent
            n = 0 if layout is None else len(layout.tokens)
            return Taken(reuse, None, n, False) if n or getattr(entry, "lent", None) is not None else None
        if call.past == 0 and isinstance(entry, CompactMixin):  # emptied
            entry.reuses, entry.is_initialized = (), False
        before, prompt = getattr(entry, "reuses", ()), self.context.prompt
        now = (False,) * call.batch if prompt is None else prompt.with_images(call.batch, self.placeholders)
        there = set() if layout is None else set(layout.tokens.spans.row)
        rows = tuple(any(each) or row in there for row, each in enumerate(zip(now, before or now)))
        if not any(rows):
            return None
        whole = all(rows) and (reuse.of == "q" or entry is None or call.past == 0 or _without_keys(entry))
        width = call.length if layout is None else layout.width
        return Taken(reuse, rows, sum(rows) * width, whole)

    def borrow(self, call: DecoderPass, i: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the layer's keyword arguments, with what exchanges its keys in place of the cache."""
        taken = call.reusing[i]
        if taken.reuse.of == "q":
            return kwargs
        names = inspect.signature(self.layers[i].forward).parameters
        name = next(name for name in ("cache", "past_key_values") if name in names)  # before transformers 5.24
        how = _only_values if taken.whole else _mixed
        if taken.rows is None and (entry := _thin(kwargs.get(name), i)) is not None:
            how = partial(_without_visual, entry)
        exchange: Exchange = partial(how, call, taken)
        return {**kwargs, name: _Borrowed(kwargs.get(name), exchange)}

    def exchange(self, i: int, query: Tensor, key: Tensor) -> Tensor:
        """Return what the kernel of layer ``i`` gets as queries; kept, with the keys, for layers that reuse them."""
        call = self.context.decoder
        if call is None:
            return query
        taken = call.reusing.pop(i, None)
        if taken is not None and taken.tokens:
            lent = call.lent[taken.reuse.source][0].to(query.device)
            query = lent if taken.whole else torch.where(_mask(call, taken, query.device), lent, query)
        if i in self.until:
            call.lent[i] = query, key
        for source, last in self.until.items():
            if last == i:
                call.lent.pop(source, None)
        return query

    def _project(
        self, i: int, width: int, stock: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """A projection of a layer that reuses: of the other tokens, zeros elsewhere; of none, a head of zeros."""
        call = self.context.decoder
        taken = None if call is None else call.reusing.get(i)
        if call is None or taken is None or not taken.tokens:
            return stock(x, *args, **kwargs)
        if taken.whole:
            return x.new_zeros(()).expand(*x.shape[:-1], width)
        rows = x.flatten(0, 1)
        place = call.memo.once(f"others {taken.rows}", (call.layout,), partial(_others, call, taken)).to(x.device)
        made = stock(rows.index_select(0, place), *args, **kwargs)
        full = made.new_zeros(len(rows), made.shape[-1])
        return full.index_copy_(0, place, made).view(*x.shape[:-1], -1)

    def _note(self, call: DecoderPass, i: int) -> None:
        """Note a visit of the site, at which nothing leaves."""
        action, layout = self.actions[i], call.layout
        assert layout is not None
        t = layout.tokens
        name = action.method.name()
        call.trace.add(visit_of(action.site, name, 0, t, says=f"reuses {action.site.reuse}"))


def _only_values(
    call: DecoderPass, taken: Taken, cache: Cache | None, key: Tensor, value: Tensor, args: Any, kwargs: Any
) -> tuple[Tensor, Tensor]:
    """All keys are the source's: the entry holds values, and keys of no width."""
    lent = call.lent[taken.reuse.source][1].to(value.device)
    if cache is None:
        return lent, value
    value = cache.update(key[..., :0], value, *args, **kwargs)[1]
    return lent[:, :, -value.shape[2] :], value


def _mixed(
    call: DecoderPass, taken: Taken, cache: Cache | None, key: Tensor, value: Tensor, args: Any, kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Return the source's keys of the tokens that are taken, and the layer's own of the others."""
    lent = call.lent[taken.reuse.source][1][:, :, -key.shape[2] :].to(key.device)
    key = torch.where(_mask(call, taken, key.device), lent, key)
    return (key, value) if cache is None else cache.update(key, value, *args, **kwargs)


def _without_visual(
    entry: CompactMixin,
    call: DecoderPass,
    taken: Taken,
    cache: Cache,
    key: Tensor,
    value: Tensor,
    args: Any,
    kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Return the source's keys of visual tokens, which the entry does not hold, and the layer's own of the others."""
    before, n = entry.lent, key.shape[2]
    if before is None:  # what it holds now is all its own
        held = entry.values.shape[2] if entry.is_initialized else 0
        before = call.memo.once(f"lent {held}", (), lambda: Lent.none(len(key), held, key.device))
    if taken.tokens:
        mask = _mask(call, taken, before.mask.device)[:, 0, :, 0].expand(len(key), n)
        entry.lent, take = call.memo.once("lent", (before, call.layout), lambda: before.arrived(mask, _fewest(call)))
        key = key.gather(2, take.to(key.device)[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3]))
    else:
        entry.lent = call.memo.once("lent", (before,), lambda: before.append(n))
    key, value = cache.update(key, value, *args, **kwargs)
    lent, mask = call.lent[taken.reuse.source][1].to(key.device), entry.lent.mask.to(key.device)[:, None, :, None]
    return torch.where(mask if entry.visible is None else entry.visible.take(mask), lent, key), value


def _fewest(call: DecoderPass) -> int:
    """Tell how many visual tokens this forward brings to each row of the batch at least."""
    assert call.layout is not None
    tokens, found = call.layout.tokens, [0] * call.batch
    for row, n in zip(tokens.spans.row, tokens.counts):
        found[row] += n
    return min(found)


def _thin(cache: Cache | None, i: int) -> CompactMixin | None:
    """Return the cache entry of layer ``i`` if it can do without the keys of some tokens; None: it holds all."""
    entry = entry_of(cache, i)
    can = isinstance(entry, CompactMixin) and not entry.is_sliding and not isinstance(entry, cache_utils.QuantizedLayer)
    return entry if can else None


def _mask(call: DecoderPass, taken: Taken, device: torch.device) -> Tensor:
    """``(B, 1, P or 1, 1)`` bool: the tokens that are taken."""

    def mask() -> Tensor:
        if taken.rows is not None:
            return torch.tensor(taken.rows)[:, None, None, None].to(device, non_blocking=True)
        layout = call.layout
        assert layout is not None, "visual tokens are taken in forwards that bring some"
        found = torch.zeros(call.batch, layout.width, dtype=torch.bool, device=layout.row.device)
        there = torch.ones((), dtype=torch.bool, device=found.device)
        return found.index_put((layout.row, layout.slot), there)[:, None, :, None]

    return call.memo.once(f"taken {taken.rows}", (call.layout,), mask).to(device)


def _others(call: DecoderPass, taken: Taken) -> Tensor:
    """Places, in the flattened batch, of the tokens that are not taken, padding included; without asking the device."""
    layout = call.layout
    width = call.length if layout is None else layout.width
    if taken.rows is not None:
        rows = torch.tensor([row for row, each in enumerate(taken.rows) if not each], dtype=torch.long)
        return (rows[:, None] * width + torch.arange(width)).flatten()
    assert layout is not None
    visual = torch.zeros(call.batch * width, dtype=torch.uint8, device=layout.row.device)
    visual = visual.index_fill(0, layout.row * width + layout.slot, 1)
    return torch.argsort(visual, stable=True)[: len(visual) - taken.tokens]


def _without_keys(entry: Any) -> bool:
    """Tell whether a cache entry holds values only."""
    return bool(entry.is_initialized) and entry.keys.dim() == 4 and entry.keys.shape[-1] == 0


def _refuse_entry(entry: Any, taken: Taken) -> None:
    if entry is None:
        return
    if not isinstance(entry, DynamicLayer):
        raise UnsupportedCacheError(
            f"a layer cannot reuse {taken.reuse} with a cache of {type(entry).__name__}, whose keys are as long as its buffer: "
            "use the default DynamicCache (generate without cache_implementation='static')"
        )
    if taken.whole and taken.reuse.of == "qk" and isinstance(entry, cache_utils.QuantizedLayer):
        raise UnsupportedCacheError(
            f"{type(entry).__name__} quantises keys, and the entry of a layer that reuses {taken.reuse} has none: use the "
            'default DynamicCache, or tokens="visual"'
        )


# -- what can be reused ---------------------------------------------------------------------------------------------------


def spared(attention: Any, spec: Decoder, reuse: Reuse) -> list[str]:
    """Names of the projections that are not computed for what is reused.

    One of queries is where it makes something else as well (a gate of the attention's output).
    """
    heads = getattr(attention, "num_heads", None) or attention.config.num_attention_heads
    query: Any = attention.get_submodule(spec.query)
    names = [spec.query] if query.out_features == heads * attention.head_dim else []
    return names if reuse.of == "q" else [*names, spec.key]


def check_reuse(
    actions: Sequence[Action], layers: Sequence[nn.Module], spec: Decoder, kinds: Sequence[str], sources: Sequence[int]
) -> None:
    """Raise `UnsupportedSiteError` for a layer that cannot reuse what it is to."""
    taken: set[int] = set()
    for action in actions:
        site, reuse, name = action.site, action.site.reuse, action.method.name()
        if reuse is None:
            continue
        i, source = site.layer, reuse.source
        if source >= i:
            raise UnsupportedSiteError(
                f"{name}: {site} takes from layer {source}, which has not run: name an earlier layer"
            )
        if i in taken:
            raise UnsupportedSiteError(f"{name}: layer {i} reuses already: let one method say from which layer")
        taken.add(i)
        why = _unlike(i, source, reuse, layers, spec, kinds, sources)
        if why:
            raise UnsupportedSiteError(f"{name}: layer {i} cannot reuse {reuse}, as {why}: choose other layers")
        for other in actions:
            why = _between(other, i, source, reuse)
            if why:
                raise UnsupportedSiteError(
                    f"{name}: layer {i} cannot reuse {reuse}, as {other.method.name()} {why}: the two layers must hold the "
                    f"same tokens, so reduce at layer {source} or before, or reuse a later layer"
                )


def _unlike(
    i: int,
    source: int,
    reuse: Reuse,
    layers: Sequence[nn.Module],
    spec: Decoder,
    kinds: Sequence[str],
    sources: Sequence[int],
) -> str:
    """Why the attention of one layer is nothing to the other one; "": it is alike."""
    own, lender = (attention_of(layers[n], spec) for n in (i, source))
    for n, attention in ((i, own), (source, lender)):
        if attention is None:
            return f"layer {n} carries a state and has no attention"
        if not all(hasattr(attention, name) for name in (spec.query, spec.key)):
            return f"{type(attention).__name__} has no {spec.query} and {spec.key}"
    if kinds and kinds[i] != kinds[source]:
        return f"layer {i} is of the kind {kinds[i]} and layer {source} of {kinds[source]}"
    shapes = [_shape(attention, spec, reuse) for attention in (own, lender)]
    if shapes[0] != shapes[1]:
        return f"their numbers of heads or widths differ, {shapes[0]} and {shapes[1]}"
    if reuse.of == "qk" and getattr(own, spec.value, None) is None:
        return f"layer {i} makes its values of its keys"
    if reuse.of == "qk" and i in sources[i + 1 :]:
        return f"later layers attend to the keys of layer {i}"
    return ""


def _shape(attention: Any, spec: Decoder, reuse: Reuse) -> tuple[int, ...]:
    query, key = (attention.get_submodule(name) for name in (spec.query, spec.key))
    return (query.out_features, attention.head_dim, *(() if reuse.of == "q" else (key.out_features,)))


def _between(other: Action, i: int, source: int, reuse: Reuse) -> str:
    """Return what another site does so that the two layers hold different tokens; "": nothing."""
    site = other.site
    inside = source < site.layer <= i
    if site.at == "decoder" and inside and site.action not in _LEAVE_ALL:
        return f"acts at {site}"
    if site.at == "decoder" and site.action == "skip" and site.part != "ffn" and site.layer in (i, source):
        return f"lets tokens skip the attention at {site}"
    if site.action == "attend" and site.layer == source:
        return f"lets layer {source} attend to parked tokens, which have no queries"
    if site.at == "decode" and reuse.of == "qk" and inside:
        return f"hides tokens from {site} on"
    return ""
