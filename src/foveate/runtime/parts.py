"""Sites at a part of a decoder layer: before its attention, or before its FFN.

The method is asked when the part is about to run, about the visual tokens as the part sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.answers import Channels
from foveate.errors import UnsupportedSiteError
from foveate.models.family import Decoder
from foveate.runtime.asking import QueryHooks, part_of, refuse_replay
from foveate.runtime.checks import check_channels
from foveate.runtime.context import Action, Context, DecoderPass
from foveate.runtime.facts import Facts
from foveate.runtime.ffn import GatedFfn, Split
from foveate.runtime.hooks import Hooks, first_argument, replace_first
from foveate.runtime.injecting import InjectHooks
from foveate.runtime.layout import Rows
from foveate.runtime.parking import others
from foveate.runtime.recurrent import attention_of
from foveate.tokens import Reduction, Tokens

See = Callable[[DecoderPass, Rows, Action, Tensor], Tokens]


class PartHooks:
    """Puts the sites of one decoder layer's parts on it.

    Args:
        i, layer: which layer.
        spec: where things are in it.
        actions: what happens at its parts.
        see: makes the tokens that a method is shown.
    """

    def __init__(self, i: int, layer: nn.Module, spec: Decoder, context: Context, actions: Sequence[Action], see: See):
        self.i, self.layer, self.spec, self.context, self.see = i, layer, spec, context, see
        self.queries = [a for a in actions if a.site.part == "attention"]
        self.asking = QueryHooks(i, layer, spec, context) if self.queries else None
        self.rows = [a for a in actions if a.site.part == "ffn" and a.site.action == "skip"]
        self.channels = [a for a in actions if a.site.action == "channels"]
        self.rows_and_channels = [*self.rows, *self.channels]
        self.injecting = InjectHooks(i, layer, spec, context, [a for a in actions if a.site.action == "inject"])
        self.ffn = layer.get_submodule(spec.ffn)
        self.gated = GatedFfn.find(self.ffn, spec)

    def attach(self, hooks: Hooks) -> None:
        """Hook the layer. The kernel of an attention that some tokens skip must be watched, too (`signals.watch`)."""
        if self.asking is not None:
            self.asking.attach(hooks)
            hooks.pre(self.layer.get_submodule(self.spec.attention), self._before_attention)
        self.injecting.attach(hooks)  # before the FFN has fewer rows, and after it has all of them again
        if self.rows_and_channels:
            hooks.pre(self.ffn, self._before_ffn)
            hooks.post(self.ffn, self._after_ffn, first=True)

    # -- attention --------------------------------------------------------------------------------------------------

    def _before_attention(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        call = self.context.decoder
        if call is None or call.layout is None or call.ahead is not None:  # (a look ahead is of all tokens)
            return
        refuse_replay(self.i, self.layer)
        x = first_argument(args, kwargs, "hidden_states")
        rows, keep = self._choose(call, self.queries, x)
        if keep is None:
            return
        asking, take = call.layout.reduce(Reduction(keep, rows.tokens.counts))
        assert take is not None
        assert self.asking is not None
        self.asking.ask(call, asking, take, x.shape[1])

    # -- FFN --------------------------------------------------------------------------------------------------------

    def _before_ffn(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self.context.decoder
        if call is None or call.layout is None:
            return None
        refuse_replay(self.i, self.layer)
        x: Tensor = first_argument(args, kwargs, "hidden_states")
        rows, keep = self._choose(call, self.rows, x)
        gone = None if keep is None else others(keep, len(call.layout.tokens)).to(x.device)
        leave = [] if gone is None else [call.layout.flat(x.device)[gone]]
        partly = made = None
        for action in self.channels:
            channels = self._ask_channels(call, rows, action, x)
            if self.gated is not None and channels.index.shape[-1] < self.gated.channels:
                partly = rows.flat(x.device)
                made = _partly(self.gated, x.flatten(0, 1).index_select(0, partly), channels, rows.tokens.counts)
                part_of(call).channels = len(partly), channels.index.shape[-1], self.gated.channels
                leave.append(partly)
        if not leave:
            return None
        whole = others(torch.cat(leave), x.shape[:-1].numel())
        call.ffn = Split(x.shape, whole, partly, made)
        part_of(call).ffn = len(whole)
        through = x.flatten(0, 1).index_select(0, whole)[None]
        return replace_first(args, kwargs, "hidden_states", through)

    def _after_ffn(self, module: nn.Module, args: Any, output: Any) -> Any:
        call = self.context.decoder
        if call is None or call.ffn is None:
            return None
        split, call.ffn = call.ffn, None
        return split.join(output)

    # -- the method -------------------------------------------------------------------------------------------------

    def _choose(self, call: DecoderPass, actions: Sequence[Action], x: Tensor) -> tuple[Rows, Tensor | None]:
        """Tell which visual tokens go through the part, one method after another: their layout, and ``(K,)``, or None: all."""
        assert call.layout is not None
        rows, keep = call.layout, None
        for action in actions:
            tokens = self._tokens(call, rows, action, x)
            reduction = action.decide(call.trace, tokens)
            call.note(action, tokens.counts)
            if len(reduction.keep) < len(tokens):
                keep = reduction.keep if keep is None else keep[reduction.keep]
                rows = rows.only(reduction.keep, rows.tokens.select(reduction.keep, reduction.counts))
        return rows, keep

    def _ask_channels(self, call: DecoderPass, rows: Rows, action: Action, x: Tensor) -> Channels:
        tokens = self._tokens(call, rows, action, x)
        answer, look = action.ask(tokens)
        assert self.gated is not None
        channels = check_channels(action.method, action.site, tokens, answer, self.gated.channels, look)
        call.note(action, tokens.counts)
        action.note(
            call.trace, tokens, says=f"visual tokens use {channels.index.shape[-1]} of {self.gated.channels} channels"
        )
        return channels

    def _tokens(self, call: DecoderPass, rows: Rows, action: Action, x: Tensor) -> Tokens:
        tokens = self.see(call, rows, action, x)
        if action.site.part == "attention":
            return tokens
        return replace(tokens, activations=partial(self._activations, call, action))

    def _activations(self, call: DecoderPass, action: Action, x: Tensor) -> Tensor:
        if self.gated is None:
            raise no_channels(action, self.ffn)
        call.trace.signal_flops += 4 * x.shape[:-1].numel() * self.gated.channels * x.shape[-1]
        return self.gated.activations(x)


def _partly(ffn: GatedFfn, x: Tensor, channels: Channels, counts: Sequence[int]) -> Tensor:
    """Return what an FFN makes of visual tokens ``x (N, C)``, ``counts`` of each span, with the channels that these use."""
    if channels.of is None:
        return ffn.partly(x, channels.index, None)
    parts = x.split(list(counts))
    made: dict[int, Tensor] = {}
    for row in sorted(set(channels.of)):
        spans = [span for span, of in enumerate(channels.of) if of == row]
        together = ffn.partly(torch.cat([parts[span] for span in spans]), channels.index, row)
        made.update(zip(spans, together.split([counts[span] for span in spans])))
    return torch.cat([made[span] for span in range(len(counts))]) if made else x


def no_channels(action: Action, ffn: nn.Module) -> UnsupportedSiteError:
    """Return the error for a method that wants the channels of an FFN that has none to choose from."""
    return UnsupportedSiteError(
        f"{action.method.name()} wants the channels of the FFN at {action.site}, but {type(ffn).__name__} is no gated FFN of "
        "plain linear layers (it is a mixture of experts, or quantised, adapted, offloaded or fused with others): name layers "
        'that have one, or let tokens skip the FFN (action="skip")'
    )


def check_parts(actions: Sequence[Action], layers: Sequence[nn.Module], facts: Facts) -> None:
    """Raise unless the layers have the parts at which methods act."""
    spec = facts.family.decoder
    chosen: dict[int, Action] = {}
    for action in actions:
        site, name = action.site, action.method.name()
        lends = site.at == "decoder" and site.action == "attend"
        if not site.part and not lends:
            continue
        layer = layers[site.layer]
        if lends and attention_of(layer, spec) is None:
            raise UnsupportedSiteError(
                f"{name}: no attention can see parked tokens at {site}, for this layer carries a state from token to token in "
                "place of attention: leave it out"
            )
        if lends and any(a.site.part == "attention" and a.site.layer == site.layer for a in actions):
            raise UnsupportedSiteError(
                f"{name}: the attention at {site} has the queries of tokens that are not parked, and some of these skip it: "
                "let tokens skip the attention of other layers"
            )
        if lends:
            facts.check_part(layer, "attention")
            continue
        if site.part == "attention" and attention_of(layer, spec) is None:
            raise UnsupportedSiteError(
                f"{name}: no token can skip the attention at {site}, for this layer carries a state from token to token in "
                "place of attention: let tokens skip its FFN, or name layers that have attention"
            )
        facts.check_part(layer, site.part)
        if any("ahead" in kind.needs for kind in action.asks):
            raise UnsupportedSiteError(
                f"{name} wants at {site} what the coming layer would do, and that layer has begun: ask before it"
            )
        if site.part == "ffn" and spec.experts and getattr(layer, spec.experts, None) is not None:
            raise UnsupportedSiteError(
                f"{name}: the FFN at {site} runs beside {spec.experts!r}, which work on the same rows: name a layer "
                "without them"
            )
        if site.action == "channels":
            ffn = layer.get_submodule(spec.ffn)
            if GatedFfn.find(ffn, spec) is None:
                raise no_channels(action, ffn)
            if site.layer in chosen:
                raise UnsupportedSiteError(
                    f"{chosen[site.layer].method.name()} and {name} both choose the channels at {site}: use one of them"
                )
            chosen[site.layer] = action
