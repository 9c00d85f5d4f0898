"""Attention sees all members of merged tokens (``positions="virtual"``), the rest of a layer the tokens that are left.

The attention module is shown as many rows as there are members. Its projections work on the tokens that are left and their
output is spread over the members; what the kernel makes of these is averaged before the last projection. Masks, rotary
embeddings, kernels and the KV cache are those of a full sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InputError, UnsupportedSiteError
from foveate.method import Method
from foveate.models.family import Decoder, Family
from foveate.runtime.context import Action, Context, DecoderPass
from foveate.runtime.hooks import Hooks, first_argument, replace_first
from foveate.runtime.layout import Rows
from foveate.runtime.members import Members, joined
from foveate.runtime.recurrent import attention_of
from foveate.tokens import Reduction


class VirtualHooks:
    """The hooks that show all members of merged tokens to the attention of a language model."""

    def __init__(self, layers: Sequence[nn.Module], spec: Decoder, context: Context) -> None:
        self.layers, self.spec, self.context = layers, spec, context

    def attach(self, hooks: Hooks) -> None:
        """Hook every layer's attention."""
        for layer in self.layers:
            attention = layer.get_submodule(self.spec.attention)
            hooks.pre(attention, self._show_members)
            end = attention.get_submodule(self.spec.attention_end)
            for child in attention.children():  # queries, keys, values, and gates
                if hasattr(child, "in_features") and child is not end:
                    hooks.instead(child, "forward", torch.compiler.disable(self._project))
            hooks.instead(end, "forward", torch.compiler.disable(self._average))

    def arrive(self, call: DecoderPass) -> None:
        """Raise `InputError` unless a forward brings whole images, as the members of a token may be anywhere in one."""
        if call.names is None or call.layout is None:
            return
        tokens = call.layout.tokens
        if tokens.counts != tokens.spans.sizes:
            raise InputError(
                'positions="virtual" cannot follow an image that chunked prefill cuts: a merged token stands for members in '
                "all of it; use prefill_chunk_size=None"
            )

    @staticmethod
    def follow(call: DecoderPass, before: Rows, reduction: Reduction, after: Rows) -> Members:
        """Note which members each token has after a reduction, and return what has become of each token before it."""
        old, group = (
            call.members or Members.each_alone(before),
            joined(reduction.keep, len(before.tokens), reduction.groups),
        )
        call.members = old.after(after, group)
        return Members(after, before, group)

    def refuse_replay(self, call: DecoderPass, layer: Any) -> None:
        """Raise `UnsupportedSiteError` where gradient checkpointing would run a layer again, once its members are forgotten."""
        if call.members is None:
            return
        if layer.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
            raise UnsupportedSiteError(
                'positions="virtual" cannot be replayed by gradient checkpointing: call gradient_checkpointing_disable()'
            )

    def _now(self) -> Members | None:
        return self.context.decoder.members if self.context.decoder else None

    def _show_members(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        members = self._now()
        if members is None or self.context.decoder is None:
            return None
        x: Tensor = first_argument(args, kwargs, "hidden_states")
        self.context.decoder.left = x
        shown = x.new_zeros(()).expand(len(x), members.outer.width, x.shape[-1])
        return replace_first(args, kwargs, "hidden_states", shown)

    def _project(self, stock: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        members, call = self._now(), self.context.decoder
        if members is None or call is None or call.left is None:
            return stock(x, *args, **kwargs)
        return members.spread(stock(call.left, *args, **kwargs))

    def _average(self, stock: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        members = self._now()
        return stock(x if members is None else members.mean(x), *args, **kwargs)


def check_virtual(
    actions: Sequence[Action], family: Family, layers: Sequence[nn.Module], sources: Sequence[int]
) -> None:
    """Raise `UnsupportedSiteError` where tokens cannot stand for their members."""
    attentions = [attention_of(layer, family.decoder) for layer in layers]
    for action in actions:
        site, name = action.site, action.method.name()
        if not is_virtual(action.method):
            return
        why = ""
        if None in attentions:
            why = "some layers of this model carry a state from token to token, and would take in members one after another"
        elif any(hasattr(attention, family.decoder.latent) for attention in attentions):
            why = "the attention of this model makes keys of what its cache holds, which is one row for a token"
        elif any(source != i for i, source in enumerate(sources)):
            why = (
                "in this model layers attend to the keys of earlier ones, which stock code may show the last rows alone"
            )
        elif site.action == "append" and site.at == "tower":
            why = f"tokens that are appended at {site} are members of none"
        elif site.at == "pixels":
            why = f"a method that resizes images at {site} does not say which tokens each new one stands for"
        elif site.at.startswith("tower") and site.action == "reduce" and family.tower.arrangements:
            why = f"in {family.name!r} features are rearranged after {site}, so merge at lm_entry"
        elif site.at == "decoder" and site.action == "attend":
            why = f"parked tokens lend a row of keys and values each at {site}, and merged tokens have one for every member"
        elif site.part == "attention":
            why = f"tokens that skip it have one row each in the attention at {site}, and merged tokens one for every member"
        elif site.action == "reuse":
            why = f"{site} takes queries and keys of tokens from another layer, where they may have had other members"
        if why:
            raise UnsupportedSiteError(
                f'{name}: positions="virtual" cannot be had here, as {why}; or use positions="keep"'
            )


def is_virtual(method: Method) -> bool:
    """Tell whether merged tokens of a method stand for all of their members."""
    return method.parts()[0].positions == "virtual"
