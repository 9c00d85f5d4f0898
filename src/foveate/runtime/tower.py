"""Vision-tower sites: pixels, before a block, between attention and FFN, and the output.

The tower runs on fewer rows; its output module (projector, merger) puts them back at their places among full-length
rows, and a missing row is NaN: a hole that travels in band to the language model. Where stock code counts rows before that
module, they are put back at the end of the tower; where it rearranges them after it, holes are made by `arrange`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InputError
from foveate.method import Site
from foveate.models.family import Arrangement, Family
from foveate.runtime.appending import append_in_tower, own_rows
from foveate.runtime.arrange import Arranged, arguments_of
from foveate.runtime.attending import AttendHooks
from foveate.runtime.blocks import block_arguments, key_bias, sight_of, trace_of
from foveate.runtime.context import Action, Context, Record, Running, TowerPass, wants_gradients
from foveate.runtime.facts import TowerFacts
from foveate.runtime.features import (
    all_units,
    by_image,
    full_grid,
    full_rows,
    in_tower_order,
    left_of,
    note,
    note_output,
    patches_here,
    pooled_of,
    present_units,
    with_pooled,
    with_rows,
    without_missing,
)
from foveate.runtime.hooks import Hooks, by_name, device_of, first_argument, replace_first
from foveate.runtime.images import images_of, units
from foveate.runtime.kept import left_by_tower
from foveate.runtime.layout import HOLE, frames, take_rows, tokens_of, whole, with_padding
from foveate.runtime.members import moved
from foveate.runtime.merger import attach_merger
from foveate.runtime.mid import attach_mid
from foveate.runtime.packed import Packed
from foveate.runtime.parking import Lot, come_back
from foveate.runtime.pixels import choose_grid
from foveate.runtime.presence import Presence
from foveate.runtime.protocol import Layout
from foveate.runtime.sight import look_in_tower
from foveate.runtime.signals.kernel import Probe, watch
from foveate.runtime.signals.kind import Kind
from foveate.runtime.signals.past import Wanted
from foveate.runtime.signals.reading import Reading
from foveate.runtime.standing import attach_stand_in
from foveate.runtime.state import Begun
from foveate.runtime.taps import attach_taps
from foveate.runtime.trace import Clock
from foveate.tokens import Parked


class TowerHooks:
    """Puts the tower's sites on a model.

    Args:
        outside: actions of the language model, which may ask for states of blocks.
        join: makes a signal of all heads, where a process has some of them.
    """

    def __init__(
        self,
        base: nn.Module,
        config: Any,
        family: Family,
        actions: list[Action],
        context: Context,
        outside: Sequence[Action] = (),
        join: Callable[[Kind, Tensor], Tensor] | None = None,
    ) -> None:
        self.base, self.config, self.spec, self.context = base, config, family.tower, context
        self.join = join
        self.tower = base.get_submodule(self.spec.module)
        self.blocks = self.spec.blocks_of(self.tower)
        self.output = base.get_submodule(self.spec.output)
        self.unit, self.modalities = self.spec.unit(config), len(family.modalities)
        self.single = self.spec.layout == "row"  # its rows have a batch axis here, and none in stock code
        self.actions = [*actions, *outside]
        self.pixels, self.outputs = ([a for a in actions if a.site.at == at] for at in ("pixels", "tower_output"))
        self.before = {i: [a for a in actions if _is(a, i, "before")] for i in range(len(self.blocks))}
        self.mids = {i: [a for a in actions if _is(a, i, "mid")] for i in range(len(self.blocks))}
        self.virtual = any(a.method.positions == "virtual" for a in actions)
        self.wanted = Wanted((a.site, a.asks) for a in actions)
        self.asked = Wanted((a.site, a.asks) for a in outside)
        self.kept, self.last = self.asked.blocks, self.spec.last_block(config)
        self.reduces = bool(actions or self.asked.tower)
        self.wanted.keep_for(self.asked)
        self.proportional = any(a.method.proportional_attention for a in actions)
        merger = self.spec.merger
        #: the block whose sites a merger visits; one that merges nothing is not called
        self.merges_at = merger.block(config) if merger is not None and merger.rows(config) > 1 else None
        self.attending, self.facts = AttendHooks(self.spec, context), TowerFacts(family, self.unit)
        self.sees = any("pixels" in kind.needs for a in actions for kind in a.asks)
        self.parks, self.sighted = (any(a.site.action == verb for a in actions) for verb in ("park", "sight"))

    @property
    def _pools(self) -> bool:
        """Whether stock code pools the rows of this call before the output module."""
        return self.context.arranged is not None and self.context.arranged.spec.pool is not None

    def attach(self, hooks: Hooks) -> None:
        hooks.pre(self.tower, self._begin)
        if self.spec.unseen:
            return
        hooks.post(self.tower, self._end, first=True, always=True)
        hooks.post(self.output, by_image(self._scatter), first=True)
        attach_taps(hooks, self.base, self.spec, self.context)
        for name, arrangement in self.spec.arrangements.items():
            if hasattr(self.base, name):
                hooks.around(self.base, name, partial(self._encode, name, arrangement), self._encoded)
        if not self.reduces:
            return
        if self.spec.pooler:
            hooks.pre(self.tower.get_submodule(self.spec.pooler), self._before_pooler)
        hooks.post(self.blocks[-1], partial(self.facts.after_blocks, self.context, len(self.blocks)))
        if len(self.blocks) in self.wanted.leading:
            hooks.post(self.blocks[-1], self._after_last, first=True)
        attach_merger(hooks, self.tower, self.spec, self.config, self.context, self._visit)
        hooks.pre(self.base.get_submodule((*self.spec.neck, self.spec.output)[0]), self._at_output)
        for i, block in enumerate(self.blocks):
            hooks.pre(block, lambda module, args, kwargs, i=i: self._before_block(i, module, args, kwargs))
            if self.mids[i]:
                attach_mid(hooks, block, self.spec, self.context, self.mids[i], partial(self._mid_sites, i))
            attention = block.get_submodule(self.spec.attention)
            if self.spec.attention_args:
                hooks.pre(attention, self._mask_attention)
            if self._may_attend(i):
                self.attending.attach(hooks, block)
            if i in self.wanted.attention or self.proportional or self.sighted or self._may_attend(i):
                hooks.change(watch(attention, Probe(self._reading)))
            if self.spec.layout != "padded":
                attach_stand_in(hooks, attention, self.context)

    def _reading(self) -> Reading | None:
        return self.context.tower.block.reading if self.context.tower else None

    def _attends(self, block: int) -> list[Action]:
        return [a for a in self.before[block] if a.site.action == "attend"]

    def _may_attend(self, block: int) -> bool:
        """Say whether the attention of a block shows parked tokens: asked to, or because someone reads what it does to them."""
        return bool(self._attends(block) or (self.parks and block in self.wanted.attention))

    # -- the call ---------------------------------------------------------------------------------------------------

    def _encode(self, name: str, arrangement: Arrangement, *args: Any, **kwargs: Any) -> None:
        arguments = arguments_of(getattr(type(self.base), name), (self.base, *args), kwargs)
        self.context.arranged = Arranged(self.base, self.config, arrangement, arguments)

    def _encoded(self, output: Any) -> Any:
        """Features of a call whose rows are arranged are ready."""
        arranged, self.context.arranged = self.context.arranged, None
        call, self.context.tower = self.context.tower, None
        self.context.calls.leave("tower")
        if output is None or call is None or arranged is None or arranged.order is None:
            return output
        rows = arranged.order.starts[-1]
        features, hole, sizes, coords = arranged.finish(pooled_of(output, rows))
        self._close(call, Record(arranged.order, hole, sizes, coords))
        return with_pooled(output, features, rows)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Records of a prompt that the language model has read are over; image and video of one prompt stay together.
        if any(record.consumed for record in self.context.records):
            self.context.records = []
        if not self.context.records:
            self.context.trace, self.context.begun = self.context.new_trace(), Begun()
        device = device_of(module, args, kwargs)
        try:
            grid = self.spec.grid(self.config, args, kwargs)
        except InputError:
            if self.reduces:
                raise
            # Whoever acts in the language model alone can do without places in the image: nothing is known of these features.
            self.context.tower, self.context.records = None, []
            return None
        full, trace = images_of(self.spec, self.config, args, kwargs, grid, self.sees), self.context.trace
        self.context.tower = call = TowerPass(full, full, trace, Clock(device))
        trace.full_around += self.spec.around(self.tower, args, kwargs)
        trace.segments += [full.padded] * len(grid) if full.padded else []
        if self.pixels and self.spec.resize is not None:
            new, cells = choose_grid(full, self.unit, device, self.pixels, trace, self.context.begun.states)
            if new != grid:
                args, kwargs = self.spec.resize(self.config, args, kwargs, new)
                call.now = replace(images_of(self.spec, self.config, args, kwargs, new, self.sees), cells=cells)
        trace.around += self.spec.around(self.tower, args, kwargs)
        if self.reduces:
            call.now = replace(call.now, order=self.spec.order(self.config, args, kwargs))
        return args, kwargs

    def _end(self, module: nn.Module, args: Any, output: Any) -> Any:
        call = self.context.tower
        if call is None:
            return None
        if output is None:  # an error is on its way
            self.context.tower = None
            self.context.calls.leave("tower")
            return None
        if self.spec.layout != "packed" or self.spec.beyond:
            # The projector comes after the tower; the call goes on until then.
            ends = (self.spec.joins and not self.spec.pooler) or self._pools
            return self._rejoin(call, output) if self.reduces and ends else None
        if call.now.cells is not None:
            for name in self.spec.features:
                setattr(output, name, full_grid(call, getattr(output, name)))
        self._finish(call, output.pooler_output)
        return output

    def _finish(self, call: TowerPass, rows: Tensor) -> None:
        """Rows of the output module are the features."""
        kept_rows, grid = self.spec.kept_rows(self.config), call.full.grid
        self.facts.check_count(rows.shape[:-1].numel(), units(grid) + kept_rows * len(grid))
        self._close(call, in_tower_order(call, rows.device, kept_rows))

    def _close(self, call: TowerPass, record: Record) -> None:
        record.block_states = left_by_tower(call, self.asked, self.join)
        note(call, record, self.unit, self.spec.layout == "padded" and self.spec.canvas)
        # One call per modality makes a prompt; features encoded for later use must not pile up here.
        self.context.records = [*self.context.records, record][-self.modalities :]
        self.context.tower = None
        self.context.calls.leave("tower")

    # -- sites ------------------------------------------------------------------------------------------------------

    def _layout(self, call: TowerPass, hidden: Tensor) -> Layout:
        """Return the layout in force; the complete one before the first site has acted."""
        return call.layout or self._complete(call, hidden)

    def _complete(self, call: TowerPass, hidden: Tensor) -> Layout:
        now, images, leading = call.now, len(hidden), self.spec.leading
        unit = self.unit if call.layout is None else call.layout.unit  # once rows are merged, it is another
        tokens = tokens_of(frames(now.grid), hidden.device)
        if self.spec.layout == "packed":
            if now.order is not None:
                tokens = tokens.select(now.order.to(hidden.device), tokens.counts)
            return Packed(unit, len(tokens), tokens)
        layout = whole(tokens, images, leading + now.rows(unit, images), leading, unit, now.sides)
        return layout if now.padded is None else with_padding(layout)

    def _visit(self, call: TowerPass, i: int, hidden: Tensor) -> Tensor:
        """The sites before block ``i``."""
        for action in self.before.get(i, ()):
            hidden = self._act(call, action, hidden)
        return hidden

    def _mid_sites(self, i: int, call: TowerPass, hidden: Tensor) -> Tensor:
        hidden = hidden[None] if self.single else hidden
        for action in self.mids[i]:
            hidden = self._act(call, action, hidden)
        return hidden[0] if self.single else hidden

    def _before_block(self, i: int, block: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self.context.tower
        if call is None:
            return None
        args, kwargs = by_name(block, args, kwargs)
        hidden = first_argument(args, kwargs, "hidden_states")
        hidden = hidden[None] if self.single else hidden
        self.facts.at_block(call, i, hidden)
        if i - 1 in self.wanted.left:
            call.seen.left[i - 1] = hidden
        if i in self.wanted.leading:
            call.seen.leading[i] = hidden[:, 0]
        hidden = hidden if i == self.merges_at else self._visit(call, i, hidden)
        call.seen.forget(2 * i, self.wanted.until)
        if i in self.wanted.entered or i in self.kept:
            call.seen.entered[i] = hidden
        layout, lot = call.layout, call.lot
        reading, masks, attending = None, dict[str, Tensor | None](), None
        shown = hidden, layout  # to the attention
        gone = layout if self.spec.layout != "padded" and layout is not None and layout.width == 0 else None
        if lot is not None and layout is not None and self._may_attend(i):
            site = next((a.site for a in self._attends(i)), Site("tower", i, action="attend"))
            shown, gone = (lot.lend(call.trace, layout, hidden, site), lot.outer), None
        if gone is not None:
            shown = hidden, call.memo.once("first", (gone,), gone.first)
        if shown[1] is not None and shown[1].index is not None:
            kwargs, masks = block_arguments(self.spec, call.memo, shown[1], block, hidden, kwargs)
        if lot is not None and shown[0] is not hidden:
            attending = self.attending.of(call.memo, lot, shown[0], kwargs)
        kinds = self.wanted.attention.get(i, [])
        bias, sight = key_bias(shown[1]) if self.proportional else None, None if gone else sight_of(layout)
        if kinds or bias is not None or attending is not None or sight is not None:
            reading = Reading(
                key_bias=bias, sight=sight, attending=attending, width=shown[0].shape[-2], stands=bool(gone)
            )
            reading.gradients = wants_gradients(self.actions, block)
            for kind in kinds:
                kind.ask(reading, lambda rows: torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device))
            if self.spec.layout == "padded":
                own = layout or self._layout(call, hidden)
                reading.valid, reading.parts = own.valid, own.pairs(shown[1] or own)
            if kinds:
                call.seen.readings[i] = reading
        call.trace.blocks.append(trace_of(self.spec, i, hidden, kwargs, attending, None if gone is None else gone.unit))
        call.block = Running(reading, attending, masks)
        return replace_first(args, kwargs, "hidden_states", hidden[0] if self.single else hidden)

    def _mask_attention(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self.context.tower
        return None if call is None or not call.block.masks else (args, {**kwargs, **call.block.masks})

    def _act(self, call: TowerPass, action: Action, hidden: Tensor) -> Tensor:
        """One site: read, decide, and give the hidden states that go on."""
        layout, site = self._layout(call, hidden), action.site
        if site.action == "restore":
            return self._restore(call, action, layout, hidden)
        if site.action == "attend":
            return hidden
        outer = layout
        if site.unit == "patch":
            layout = layout.patches()
        state = self.context.begun.states.of(action.method, action.part)
        pixels = partial(patches_here, call, layout, self.unit)
        here = Presence(layout, hidden, call.seen, call.trace, join=self.join, pixels=pixels)
        tokens = here.tokens(action, state=state)
        if site.action == "sight":
            call.layout = look_in_tower(action, call, layout, tokens)
            return hidden
        if site.action == "append":
            return append_in_tower(action, call, layout, self._complete(call, hidden), tokens, hidden)
        reduction = action.decide(call.trace, tokens)
        parking = site.action == "park"
        if parking and len(reduction.keep) == len(tokens):
            return hidden
        call.layout, take = layout.reduce(reduction)
        if self.virtual and not parking:
            call.home = moved(call.home, tokens, reduction)
        if take is not None:
            if parking:
                parked = Parked(tokens, reduction.keep)
                call.lot = Lot(action.method, parked, outer, take, self.spec.leading, call.seen.copy())
            hidden = take_rows(hidden, take)
            call.seen.narrow(take, layout.width)
        return hidden if reduction.hidden is None else call.layout.put(hidden, reduction.hidden)

    def _restore(self, call: TowerPass, action: Action, layout: Layout, hidden: Tensor) -> Tensor:
        lot = call.lot
        hidden = come_back(call, action, layout, hidden)
        if lot is not None:
            call.layout = lot.outer
        return hidden

    def _outputs(self, call: TowerPass, hidden: Tensor) -> Tensor:
        """The sites at the output of the tower, which know of the images' own tokens alone."""
        for action in self.outputs:
            hidden = self._act(call, action, hidden if action.site.action == "restore" else own_rows(call, hidden))
        hidden = own_rows(call, hidden)
        call.seen.entered |= {self.last + 1: hidden} if self.last + 1 in self.kept else {}
        return hidden

    # -- output -----------------------------------------------------------------------------------------------------

    def _rejoin(self, call: TowerPass, output: Any) -> Any:
        """The end of a tower whose patches stock code puts together: its sites, and full-length rows."""
        final = self.last == len(self.blocks) - 1 and not self.spec.states
        states = dict(enumerate(output.hidden_states or ()))
        x = output.last_hidden_state if final else states.get(self.last + 1)
        if x is None:
            raise self.facts.wrong(
                f"that Tower.last_block is {self.last}", "stock code does not ask for what it puts out"
            )
        return with_rows(output, self._full_rows(call, x), None if final else self.last + 1)

    def _before_pooler(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self.context.tower
        if call is None:
            return None
        x = self._full_rows(call, first_argument(args, kwargs, "hidden_states"))
        return replace_first(args, kwargs, "hidden_states", x)

    def _full_rows(self, call: TowerPass, x: Tensor) -> Tensor:
        x = self._outputs(call, x[None] if self.single else x)
        layout = self._layout(call, x)
        call.layout = layout if self.asked.tower else call.layout
        return full_rows(call, x, layout, self.spec)[0 if self.single else ...]

    def _at_output(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        call = self.context.tower
        if call is None:
            return None
        self.facts.at_output(call, args, self.last, self._pools)
        x = args[0]
        if self.spec.joins:
            return ((present_units(call, x, self.spec), *args[1:]), kwargs) if self.spec.joins == "before" else None
        arranged = self.context.arranged
        if arranged is not None and self._pools:
            return (arranged.pool(call.full.grid, left_of(call, x.device), x), *args[1:]), kwargs
        layout = self._layout(call, x)
        if x.shape[-2] == layout.width - self.spec.leading:
            layout = layout.without_leading(self.spec.leading)
            call.lot = None if call.lot is None else call.lot.without_leading()
        if call.layout is not None or self.outputs or self.asked.tower:
            call.layout = layout
        return (self._outputs(call, x), *args[1:]), kwargs

    def _after_last(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self.context.tower
        if call is not None:
            x = output[0] if isinstance(output, tuple) else output
            call.seen.leading[len(self.blocks)] = x[:, 0]

    def _scatter(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        call = self.context.tower
        if call is None:
            return None
        self.facts.check_features(output)
        layout = call.layout
        note_output(call, output, self.spec, self.spec.joins == "inside" or self._pools)
        if self.spec.layout == "packed":
            if layout is not None:
                self.facts.check_count(len(output), len(layout.tokens))
            if not self.spec.beyond:
                return None if layout is None else layout.scatter(output, HOLE)
        if self.spec.joins == "before":
            output = all_units(call, output, self.spec)
        elif self.spec.joins:
            output = without_missing(call, output)
        elif layout is not None and not self._pools:
            output = layout.scatter(output, HOLE)
        if call.now.cells is not None and (self.spec.pooler or not (self.spec.joins or self._pools)):
            output = full_grid(call, output, self.spec.kept_rows(self.config))
        arranged = self.context.arranged
        if arranged is None:
            self._finish(call, output)
            return output
        left = arranged.arrive(call.full.grid, left_of(call, output.device))
        if left is None:
            return output
        present = left.present.view(*output.shape[:2], 1) > 0
        return torch.where(present, output, output.new_zeros(()))


def _is(action: Action, block: int, where: str) -> bool:
    return action.site.at == "tower" and action.site.layer == block and action.site.where == where
