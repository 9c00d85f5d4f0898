"""A merger between two blocks of a tower: a module that makes one row of several.

It counts as the beginning of the block after it. The sites before that block act on the rows that it is about to merge, so
what they remove it never sees, and from there on a token is fewer rows. Its rows stand in raster order of the patches; where
some are missing, it is shown those that are left group by group, and what it makes of them goes to its places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from foveate.models.family import Merger, Tower
from foveate.runtime.context import Context, TowerPass
from foveate.runtime.hooks import Hooks, first_argument, replace_first
from foveate.runtime.layout import Rows, frames, starts, tokens_of, whole
from foveate.runtime.protocol import Layout
from foveate.runtime.signals.past import Past
from foveate.tokens import Reduction, Tokens

Visit = Callable[[TowerPass, int, Tensor], Tensor]


def attach_merger(hooks: Hooks, tower: nn.Module, spec: Tower, config: Any, context: Context, visit: Visit) -> None:
    """Hook the merger of a tower, if it has one; ``visit`` is the sites before a block."""
    if spec.merger is not None:
        shown = _Shown(spec.merger, config, spec.unit(config) // spec.merger.rows(config), context, visit)
        module = tower.get_submodule(spec.merger.module)
        hooks.pre(module, shown.before)
        hooks.post(module, shown.after, first=True)


class _Shown:
    """What a merger is shown, and what it makes of that; ``unit`` rows are a token then."""

    def __init__(self, spec: Merger, config: Any, unit: int, context: Context, visit: Visit) -> None:
        self.spec, self.unit, self.context, self.visit = spec, unit, context, visit
        self.block, self.group = spec.block(config), spec.rows(config)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self.context.tower
        if call is None:
            return None
        hidden = self.visit(call, self.block, first_argument(args, kwargs, "hidden_states"))
        layout, rows = call.layout, hidden.shape[-2]
        if layout is not None and layout.index is not None:
            groups = _groups(layout.pick(hidden).view(-1, hidden.shape[-1]), self.unit, self.group)
            if len(groups) == 0:  # nothing is left, and stock code wants something
                groups = hidden.new_zeros(1, self.group, hidden.shape[-1])
            rows = len(groups) * self.group
            args, kwargs = self.spec.arguments(groups)
        else:
            args, kwargs = replace_first(args, kwargs, "hidden_states", hidden)
        call.trace.merger_rows.append(rows)
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        call = self.context.tower
        if call is None:
            return None
        before = call.layout
        call.seen = Past()  # of rows that are no more
        full = tokens_of(frames(call.now.grid), output.device)
        call.layout = layout = _merged(full, before, self.unit)
        if before is None or before.index is None:
            return None
        made = output.flatten(0, 1)[: len(before.tokens) * self.unit]
        return layout.put(output.new_zeros(1, layout.width, output.shape[-1]), made)


def _groups(rows: Tensor, unit: int, group: int) -> Tensor:
    """Rows ``(N * unit * group, C)`` of tokens, those of one in raster order, as ``(N * unit, group, C)``: squares that become
    one row each, those of one token in raster order, too."""
    down, side = math.isqrt(unit), math.isqrt(group)
    x = rows.view(-1, down, side, down, side, rows.shape[-1]).transpose(2, 3)
    return x.reshape(-1, group, rows.shape[-1])


def _merged(full: Tokens, before: Layout | None, unit: int) -> Rows:
    """Return the layout of all tokens, or the same as ``before``, where a token is ``unit`` rows."""
    layout = whole(full, 1, len(full) * unit, 0, unit)
    if before is None:
        return layout
    tokens = before.tokens
    kept = starts(tokens.spans, tokens.index.device)[tokens.segment] + tokens.index
    layout, _ = layout.reduce(Reduction(kept, tokens.counts))
    return replace(layout, tokens=tokens, merged=before.merged, moved=before.moved)
