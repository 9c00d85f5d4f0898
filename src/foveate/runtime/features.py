"""What a tower call leaves: which of its units are there, as full-length rows for stock code that counts them, as features
with holes, and as the record from which the language model's side learns about them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveate.models.family import Grid, Tower
from foveate.ops.segments import offsets
from foveate.runtime.arrange import Left, Order
from foveate.runtime.context import Record, TowerPass
from foveate.runtime.images import Images, strays_of, units
from foveate.runtime.layout import HOLE, Rows, frames, starts, take_rows, tokens_of, whole
from foveate.runtime.protocol import Layout
from foveate.tokens import Reduction, Tokens


def kept_units(call: TowerPass, device: torch.device, now: bool = False) -> Tensor | None:
    """``(K,)`` units of the full grid that are there, in raster order, as stock code will see them; None: all.

    (The blocks may have seen them window after window.) ``now``: of the grid that the blocks see.
    """
    cells = None if now else call.now.cells
    if call.layout is None and cells is None:
        return None
    kept = torch.arange(units(call.now.grid), device=device)
    if call.layout is not None:
        tokens = call.layout.tokens
        kept = starts(tokens.spans, tokens.index.device)[tokens.segment] + tokens.index
    return kept if cells is None else cells.to(device)[kept]


def left_of(call: TowerPass, device: torch.device) -> Left | None:
    """Return what is there of every unit; None: all, as it was."""
    kept = kept_units(call, device)
    if kept is None:
        return None
    grid, layout = call.full.grid, call.layout
    n = units(grid)
    if len(kept) == n and (layout is None or not (layout.merged or layout.moved)):  # all that was parked is back
        return None
    present = torch.zeros(n, device=device).index_fill(0, kept, 1.0)
    sizes = shift = None
    if layout is not None and layout.merged:
        sizes = torch.ones(n, device=device).index_copy(0, kept, layout.tokens.sizes)
    if layout is not None and layout.moved:
        own = tokens_of(frames(grid), device).coords[kept, 1:]
        shift = torch.zeros(n, 2, device=device).index_copy(0, kept, _in_full_grid(layout.tokens, grid) - own)
    return Left(present, sizes, shift)


def _in_full_grid(tokens: Tokens, grid: Grid) -> Tensor:
    """``(N, 2)`` y and x in the grid before resizing."""
    now, full = (torch.tensor(spans.shape) for spans in (tokens.spans, frames(grid)))
    scale = (full / now).to(tokens.coords.device, non_blocking=True)[tokens.segment]
    return (tokens.coords[:, 1:] + 0.5) * scale - 0.5


def full_grid(call: TowerPass, rows: Any, extra: int = 0) -> Any:
    """Rows ``(U, C)`` of the resized grids (or lists of such) at their places in the full ones.

    Or ``(images, extra + U / images, C)``, where ``extra`` rows of each image stand for no patch and stay.
    """
    if isinstance(rows, list):
        return [full_grid(call, part) for part in rows]
    if rows.dim() == 3:
        body = full_grid(call, rows[:, extra:].flatten(0, 1))
        return torch.cat([rows[:, :extra], body.view(len(rows), -1, rows.shape[-1])], dim=1)
    assert call.now.cells is not None
    full = rows.new_full((units(call.full.grid), rows.shape[-1]), HOLE)
    return full.index_copy_(0, call.now.cells.to(rows.device), rows)


def by_image(hook: Callable[[Any, Any, Tensor], Tensor | None]) -> Callable[[Any, Any, Any], Any]:
    """Return a hook of an output module, for one that gives a list with a tensor for every image, too."""

    def run(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return hook(module, args, output)
        whole = hook(module, args, torch.cat(output)[None])
        return None if whole is None else list(whole[0].split([len(part) for part in output]))

    return run


# -- stock code puts the patches of a unit together, before the output module or in it -------------------------------------


def full_rows(call: TowerPass, x: Tensor, layout: Layout, spec: Tower) -> Tensor:
    """Rows ``(B, P, C)`` of ``layout`` among all rows that stock code puts together, zeros elsewhere."""
    kept, n, leading = kept_units(call, x.device, now=bool(spec.pooler)), len(x), spec.leading
    if kept is None:
        return x
    images = call.now if spec.pooler else call.full
    patches, tokens = images.rows(layout.unit, n), tokens_of(frames(images.grid), x.device)
    full = whole(tokens, n, leading + patches, leading, layout.unit, images.sides)
    rows = torch.cat([x[:, :leading], x.new_zeros(n, patches, x.shape[-1])], dim=1)
    return full.only(kept, layout.tokens).put(rows, layout.pick(x))


def with_rows(output: Any, x: Tensor, state: int | None) -> Any:
    """Return what a tower returns, with ``x`` for its last hidden state (None) or for that number of its hidden states.

    All others are holes, if they have fewer rows: whoever reads them would take them for whole images.
    """
    states, last = output.hidden_states, output.last_hidden_state
    number = len(states or ()) - 1 if state is None and states and states[-1] is last else state
    if x.shape != (last if state is None else states[state]).shape:
        last, holes = x.new_full(x.shape, HOLE), x.new_full(x.shape, HOLE)
        states = states and [
            None if each is None else holes for each in states
        ]  # where some are left out, they are None
    if states:
        output.hidden_states = tuple(x if i == number else each for i, each in enumerate(states))
    output.last_hidden_state = x if state is None else last
    return output


def present_units(call: TowerPass, x: Tensor, spec: Tower) -> Tensor:
    """Those of the units ``(B, P, C)`` (or, of a single row, ``(P, C)``) that are there."""
    if x.dim() == 2:
        return present_units(call, x[None], spec)[0]
    take = _joined(call, len(x), x.device, spec)[1]
    return x if take is None else take_rows(x, take)


def all_units(call: TowerPass, x: Tensor, spec: Tower) -> Tensor:
    """Return what the output module makes of them, back among all units."""
    if x.dim() == 2:
        return all_units(call, x[None], spec)[0]
    return _joined(call, len(x), x.device, spec)[0].scatter(x, HOLE)


def _joined(call: TowerPass, images: int, device: torch.device, spec: Tower) -> tuple[Rows, Tensor | None]:
    """The layout of the units present once stock code has put their patches together, and which of all these are."""

    def make() -> tuple[Rows, Tensor | None]:
        grid, kept = (call.now if spec.pooler else call.full).grid, kept_units(call, device, now=bool(spec.pooler))
        layout = whole(tokens_of(frames(grid), device), images, units(grid) // images, leading=0, unit=1)
        counts = frames(call.now.grid).sizes if call.layout is None else call.layout.tokens.counts
        return (layout, None) if kept is None else layout.reduce(Reduction(kept, counts))

    return call.memo.once("joined", (call.layout,), make)


def without_missing(call: TowerPass, x: Tensor) -> Tensor:
    """Rows ``(B, P, C)`` of all units (or grids of them, ``(B, h, w, C)``), holes where a unit is missing."""
    kept = kept_units(call, x.device)
    if kept is None:
        return x
    present = torch.zeros(x.shape[:-1].numel(), dtype=torch.bool, device=x.device).index_fill(0, kept, True)
    return torch.where(present.view(*x.shape[:-1], 1), x, x.new_full((), HOLE))


def pooled_of(output: Any, rows: int) -> Any:
    """Return the ``rows`` features in what the function that encodes a modality returns: one tensor, or one for every image."""
    return output[_place(output, rows)] if isinstance(output, tuple) else output.pooler_output


def with_pooled(output: Any, features: Any, rows: int) -> Any:
    """The same output with other features, where it had ``rows``."""
    if isinstance(output, tuple):
        place = _place(output, rows)
        return (*output[:place], features, *output[place + 1 :])
    output.pooler_output = features
    return output


def _place(output: tuple[Any, ...], rows: int) -> int:
    """Tell where features are among what comes without names: hidden states may come before them."""
    for i, each in enumerate(output[1:], 1):
        parts = each if isinstance(each, (list, tuple)) else [each]
        if sum(part.shape[:-1].numel() if isinstance(part, Tensor) else -1 for part in parts) == rows:
            return i
    return 1


# -- the record -----------------------------------------------------------------------------------------------------------


def in_tower_order(call: TowerPass, device: torch.device, kept_rows: int) -> Record:
    """The record of features that are the rows of the output module.

    In front of each image, ``kept_rows`` stand for no patch.
    """
    left, parts, start = left_of(call, device), [], 0
    grid = call.full.grid
    counts = [t * h * w for t, h, w in grid]
    for n in counts:
        parts += [torch.full((kept_rows,), -1), torch.arange(start, start + n)]
        start += n
    order = Order(grid, torch.cat(parts), tuple(offsets([kept_rows + n for n in counts])))
    if left is None:
        return Record(order, None, None, None)
    patch = order.patch.to(device, non_blocking=True)
    hole = (patch >= 0) & (left.present[patch.clamp(min=0)] == 0)
    coords = None
    if left.shift is not None:
        coords = tokens_of(frames(grid), device).coords
        coords = torch.cat([coords[:, :1], coords[:, 1:] + left.shift], dim=1)
    return Record(order, hole, left.sizes, coords, home=call.home)


def patches_here(call: TowerPass, layout: Layout, unit: int) -> Tensor:
    """``(N, k)`` pixel values of the tokens present."""
    patches, tokens = call.now.patches(unit), layout.tokens
    cell = starts(tokens.spans, tokens.index.device)[tokens.segment] + tokens.index
    return patches[cell.to(patches.device)]


def note(call: TowerPass, record: Record, unit: int, padded: bool) -> None:
    """Note a call that is over. In padded towers, small images are padded to the largest before their patches are embedded."""
    trace, full = call.trace, call.full
    trace.grid += full.grid
    trace.views += record.order.grid
    trace.features += record.order.starts[-1]
    trace.patch_rows += _patches(call.now, unit, padded)
    trace.full_patch_rows += _patches(full, unit, padded)
    trace.strays += strays_of(full.grid, full.sides, unit)
    trace.clocks.setdefault("tower", []).append(call.clock.stop())


def note_output(call: TowerPass, output: Tensor, spec: Tower, pools: bool) -> None:
    """Note the rows that the output module ran on. ``pools``: stock code pools them, in it or before it, whatever is there.

    Of a padded tower every image has as many as the one that kept most.
    """
    trace, full, layout = call.trace, units(call.full.grid), call.layout
    if pools:
        rows = full = output.shape[:-1].numel()
    elif spec.joins:
        rows = _joined(call, 1 if output.dim() == 2 else len(output), output.device, spec)[0].n_rows
    else:
        rows = units(call.now.grid) if layout is None else layout.n_rows // layout.unit
    trace.output_rows += rows
    trace.full_output_rows += full


def _patches(images: Images, unit: int, padded: bool) -> int:
    """Patches that are embedded; ``padded``: all images are as high as the highest and as wide as the widest."""
    grid, sides = images.grid, images.sides
    if not padded:
        return units(grid) * unit + sum(strays_of(grid, sides, unit))
    if sides:
        return len(sides) * max(h for h, _ in sides) * max(w for _, w in sides)
    return unit * sum(t for t, _, _ in grid) * max(h for _, h, _ in grid) * max(w for _, _, w in grid)
