"""A stand-in for the rows of a packed sequence of which none is left: stock attention takes no empty one."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from foveate.runtime.context import Context
from foveate.runtime.hooks import Hooks, first_argument, replace_first


def attach_stand_in(hooks: Hooks, attention: nn.Module, context: Context) -> None:
    """Give an attention without rows a token of zeros, of whose output nothing stays.

    Its other arguments are those of the first token of the full sequence (`Layout.first`).
    """
    hooks.pre(attention, partial(_before, context))
    hooks.post(attention, partial(_after, context), first=True)


def _before(context: Context, module: nn.Module, args: Any, kwargs: Any) -> Any:
    call, x = context.tower, first_argument(args, kwargs, "hidden_states")
    if call is None or call.layout is None or len(x):
        return None
    return replace_first(args, kwargs, "hidden_states", x.new_zeros(call.layout.unit, x.shape[-1]))


def _after(context: Context, module: nn.Module, args: Any, output: Any) -> Any:
    call = context.tower
    if call is None or call.layout is None or call.layout.width or call.block.attending is not None:
        return None
    return (output[0][:0], *output[1:]) if isinstance(output, tuple) else output[:0]
