"""Taps: modules that make features of the rows between two blocks of a tower, as its output module does after the last.

A tap is shown every token that has not left for good, the parked ones too; its rows stand at their places among full-length
rows, and a missing row is a hole, like those of the output.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from foveate.method import Site
from foveate.models.family import Tower
from foveate.runtime.appending import own
from foveate.runtime.context import Context
from foveate.runtime.hooks import Hooks
from foveate.runtime.images import units
from foveate.runtime.layout import HOLE, take_rows


def attach_taps(hooks: Hooks, base: nn.Module, spec: Tower, context: Context) -> None:
    """Hook the taps of a tower, if it has any."""
    taps: Any = base.get_submodule(spec.taps) if spec.taps else []
    for i, tap in enumerate(taps):
        hooks.pre(tap, partial(_before, context, i))
        hooks.post(tap, partial(_after, context), first=True)


def _before(context: Context, i: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
    call = context.tower
    if call is None:
        return None
    x, layout, lot = args[0], call.layout, call.lot
    if lot is not None and layout is not None:
        x = lot.lend(call.trace, layout, x, Site("tower", call.trace.blocks[-1].block + 1, action="attend"))
        layout = lot.outer
    if layout is not None:
        layout, take = call.memo.once("own", (layout,), partial(own, layout))
        x = x if take is None else take_rows(x, take)
    call.trace.tap_rows.append((i, units(call.now.grid) if layout is None else len(layout.tokens)))
    return (x, *args[1:]), kwargs


def _after(context: Context, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    call = context.tower
    if call is None or call.layout is None:
        return None
    layout = call.layout if call.lot is None else call.lot.outer
    return call.memo.once("own", (layout,), partial(own, layout))[0].scatter(output, HOLE)
