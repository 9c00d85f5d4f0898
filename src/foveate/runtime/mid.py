"""Sites between attention and FFN of a tower block: the norm's input is reduced, the residual sum of stock code gets a dummy of
the length it expects, and the block returns the sum of what was kept aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from foveate.errors import UnsupportedSiteError
from foveate.models.family import Tower
from foveate.runtime.context import Action, Context, TowerPass
from foveate.runtime.hooks import Hooks, first_argument, replace_first

Visit = Callable[[TowerPass, Tensor], Tensor]


def attach_mid(
    hooks: Hooks, block: nn.Module, spec: Tower, context: Context, actions: Sequence[Action], visit: Visit
) -> None:
    """Hook a block that has such sites, ``actions``; ``visit`` lets them act on the residual stream."""
    shown = _Between(block, spec, context, actions[0], visit)
    hooks.pre(block.get_submodule(spec.mid_norm), shown.before_norm)
    hooks.post(block.get_submodule(spec.ffn_end), shown.after_ffn)
    hooks.post(block, shown.after_block, first=True)


class _Between:
    """One block. ``Running.mid`` holds the reduced residual stream, then the sum, and the shape that stock code expects."""

    def __init__(self, block: nn.Module, spec: Tower, context: Context, first: Action, visit: Visit) -> None:
        self.block, self.context, self.first, self.visit = block, context, first, visit
        self.ffn_scale = spec.ffn_scale

    def before_norm(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self.context.tower
        if call is None:
            return None
        x = first_argument(args, kwargs, "hidden_states")
        if getattr(self.block, "gradient_checkpointing", False) and self.block.training and x.requires_grad:
            raise UnsupportedSiteError(
                f"{self.first.site} cannot be replayed by gradient checkpointing: freeze the vision tower, or call "
                "gradient_checkpointing_disable() on it"
            )
        hidden = self.visit(call, x)
        if call.layout is None:
            return None
        call.block = replace(call.block, mid=(hidden, x.shape))
        call.trace.blocks[-1].ffn_rows = hidden.shape[:-1].numel()
        return replace_first(args, kwargs, "hidden_states", hidden)

    def after_ffn(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        call = self.context.tower
        if call is None or call.block.mid is None:
            return None
        hidden, shape = call.block.mid
        scaled = getattr(self.block, self.ffn_scale) * output if self.ffn_scale else output
        call.block = replace(call.block, mid=(hidden + scaled, shape))
        return output.new_zeros(()).expand(shape)

    def after_block(self, module: nn.Module, args: Any, output: Any) -> Any:
        call = self.context.tower
        if call is None or call.block.mid is None:
            return None
        joined, _ = call.block.mid
        call.block = replace(call.block, mid=None)
        return (joined, *output[1:]) if isinstance(output, tuple) else joined
