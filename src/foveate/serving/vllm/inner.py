"""The language model in a step in which features arrive, where tokens leave inside it.

Its layers run one after another on fewer and fewer tokens; after the last one, those that are left stand at their places among
all tokens of the step, so that the engine finds the ones that it samples from. Every other step is the stock model's, compiled
or not: it differs in the metadata of its layers only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.layers.attention import Attention

from foveate.errors import InputError, UnsupportedModelError
from foveate.ops.segments import offsets, ranges
from foveate.runtime.engines import Action, Kind, Past, Presence, Reading, Trace, Wanted, frames, tokens_of
from foveate.serving.plan import Plan
from foveate.serving.vllm.attention import Packed, PagedReading, StoppedError, Watch, all_heads
from foveate.serving.vllm.cache import reduce_groups
from foveate.serving.vllm.columns import Columns
from foveate.serving.vllm.prompt import Ints, Placed
from foveate.serving.vllm.step import Step
from foveate.tokens import Tokens


@dataclass
class Images:
    """The visual tokens of a step whose prompts ask for the same.

    Attributes:
        plan: of what they ask for.
        tokens, rows: those that are left, and ``(N,)`` where they are among all tokens that are.
        request: ``(S,)`` request of each span.
        past: what layers before have left of them, as long as somebody asks.
    """

    plan: Plan
    tokens: Tokens
    rows: Tensor
    request: Ints
    past: Past = field(default_factory=Past)


@dataclass
class Flow:
    """The tokens of a step on their way through the layers.

    Attributes:
        hidden, residual: ``(T, C)``, two summands of the hidden states; ``residual`` may be None.
        positions: ``(T,)`` or ``(3, T)``.
        added: for layer 0, 1, ..., what is added to the hidden states after it, ``(T, C)``.
        origin: ``(T,)`` place of each among all tokens of the step.
        lengths: ``(R,)`` tokens of each request, ``generated`` those of them that come after its prompt.
        images: the visual tokens, by what their prompts ask for.
        trace: of this step; nobody reads it.
    """

    hidden: Tensor
    residual: Tensor | None
    positions: Tensor
    added: list[Tensor]
    origin: Tensor
    lengths: Ints
    generated: Ints
    images: list[Images]
    trace: Trace = field(default_factory=Trace)

    @property
    def state(self) -> Tensor:
        """``(T, C)`` hidden states."""
        return self.hidden if self.residual is None else self.hidden + self.residual

    @property
    def last(self) -> list[int]:
        """The place of each prompt's last token among those of its request."""
        last: list[int] = (self.lengths - 1 - self.generated).tolist()
        return last

    def act(self, action: Action, images: Images, ahead: Callable[[Sequence[Kind]], Reading]) -> None:
        """Of these images only the survivors go on; all else does. ``ahead`` reads the attention of the layer to come."""
        here = Presence(
            Packed(images.tokens, images.rows), self.state, images.past, self.trace, ahead=ahead, join=all_heads
        )
        reduction = action.decide(self.trace, here.tokens(action))
        state, before = self.state, np.array(images.tokens.counts)
        stays = torch.ones(len(state), dtype=torch.bool, device=state.device)
        stays = stays.index_fill(0, images.rows, False).index_fill(0, images.rows[reduction.keep], True)
        # A stable sort keeps the order of what stays, without asking the device how much that is.
        gone = len(images.rows) - len(reduction.keep)
        take, now = torch.argsort((~stays).to(torch.uint8), stable=True)[: len(state) - gone], stays.cumsum(0) - 1
        images.rows = images.rows[reduction.keep]
        for each in self.images:
            each.rows = now[each.rows]
            each.past.entered = {layer: x[take] for layer, x in each.past.entered.items()}
        self.hidden, self.residual = state[take], None
        if reduction.hidden is not None:
            self.hidden = self.hidden.index_copy(0, images.rows, reduction.hidden.to(state.dtype))
        self.positions, self.origin = self.positions[..., take], self.origin[take]
        self.added = [rows[take] for rows in self.added]
        for reading in images.past.readings.values():
            assert isinstance(reading, PagedReading)
            reading.place = reading.place[reduction.keep]
        images.tokens = reduction.survivors(images.tokens)
        self.lengths = self.lengths.copy()
        np.subtract.at(self.lengths, images.request, before - np.array(reduction.counts))


class Inner:
    """The decoder of a model of vLLM.

    Args:
        decoder: the module with the layers.
        plan: of the method.
        groups: whether the engine has KV-cache groups.

    Attributes:
        attention: of each layer, where tokens leave inside the language model.
        names: of the attention layers from each of the plan's layers on, up to the next one.
    """

    def __init__(self, decoder: Any, plan: Plan, groups: bool) -> None:
        self.decoder, self.plan = decoder, plan
        self.wanted = Wanted((action.site, action.asks) for each in plan.plans for action in each.inner)
        ends = [*plan.layers, len(decoder.layers)][1:]
        self.attention = {i: _attention(plan, decoder.layers[i]) for i in range(len(decoder.layers)) if plan.layers}
        self.names = [
            frozenset(self.attention[i].layer_name for i in range(start, end)) for start, end in zip(plan.layers, ends)
        ]
        if groups and plan.layers:
            reduce_groups([*self.attention.values()], plan)

    def __call__(self, step: Step, positions: Tensor, embeds: Tensor, added: list[Tensor]) -> Tensor:
        """Hidden states ``(P, C)`` after the final norm; rows of tokens that have left are zeros.

        Args:
            step: of the engine, in which features arrive.
            positions: ``(P,)`` or ``(3, P)``.
            embeds: ``(P, C)``, those of this step first.
            added: for layer 0, 1, ..., what is added to the hidden states after it, ``(P, C)``.
        """
        flow, planned = self._begin(step, positions, embeds, added), iter(step.planned)
        for i, layer in enumerate(self.decoder.layers):
            for images in flow.images:
                for action in images.plan.inner:
                    if action.site.layer == i:
                        flow.act(action, images, partial(self._ahead, i, flow, images))
            if i in self.plan.layers and not np.array_equal(flow.lengths, next(planned)):
                raise InputError(
                    f"{self.plan.method!r} left more or fewer before layer {i} than planned: its budget is not fixed"
                )
            for images in flow.images:
                images.past.forget(2 * i, self.wanted.until)
                if i in self.wanted.entered:  # a layer adds to what it is given in place
                    images.past.entered[i] = flow.state if flow.residual is not None else flow.state.clone()
            with self._watch(i, flow) as watch:
                flow.hidden, flow.residual = layer(flow.positions, flow.hidden, flow.residual)
            if i < len(flow.added):
                flow.hidden = flow.hidden + flow.added[i]
            if watch is not None and watch.reading is not None:
                for images in flow.images:
                    images.past.readings[i] = replace(watch.reading, place=watch.reading.place[images.rows])
        hidden: Tensor = self.decoder.norm(flow.hidden, flow.residual)[0]
        return hidden.new_zeros(len(embeds), hidden.shape[-1]).index_copy(0, flow.origin, hidden)

    def _watch(self, layer: int, flow: Flow) -> AbstractContextManager[Watch | None]:
        """Reads the attention of a layer, if somebody asks."""
        kinds = self.wanted.attention.get(layer)
        if not kinds:
            return nullcontext()
        return Watch(self.attention[layer], kinds, flow.lengths.tolist(), flow.last)

    def _ahead(self, layer: int, flow: Flow, images: Images, kinds: Sequence[Kind]) -> Reading:
        """Return what the attention of a layer that has not run yet would be: it runs up to there."""
        lengths, positions = flow.lengths.tolist(), flow.positions
        if any("unrotated" in kind.needs for kind in kinds):
            positions = torch.zeros_like(positions)  # at which rotary embeddings turn nothing
        with suppress(StoppedError), Watch(self.attention[layer], kinds, lengths, flow.last, ahead=True) as watch:
            self.decoder.layers[layer](positions, flow.state, None)
        assert watch.reading is not None
        return replace(watch.reading, place=watch.reading.place[images.rows])

    def _begin(self, step: Step, positions: Tensor, embeds: Tensor, added: list[Tensor]) -> Flow:
        assert step.arrived is not None
        (columns, places), n = step.arrived, int(step.count.sum())
        places, choices = places.to(embeds.device), [placed.item.choice for _, placed, _ in step.within]
        images, starts = [], offsets([n for _, _, n in step.within])
        for choice in dict.fromkeys(choices):
            mine = [i for i, each in enumerate(choices) if each == choice]
            within = [step.within[i] for i in mine]
            take = ranges([starts[i] for i in mine], [n for _, _, n in within], places.device)
            images.append(self._images(self.plan.of(choice), within, columns.at(take), places[take]))
        return Flow(
            hidden=embeds[:n],
            residual=None,
            positions=positions[..., :n],
            added=[rows[:n] for rows in added],
            origin=torch.arange(n, device=embeds.device),
            lengths=step.count,
            generated=step.generated,
            images=images,
        )

    def _images(self, plan: Plan, within: Sequence[tuple[int, Placed, int]], columns: Columns, rows: Tensor) -> Images:
        """Return the visual tokens of some images of a step, ``rows`` of them among all of its tokens."""
        items = [placed.item for _, placed, _ in within]
        counts = [plan.entry_counts(item) for item in items]
        if (patches := sum(map(sum, counts))) < len(rows):  # others stand for no patch
            take = torch.argsort((columns.cell < 0).to(torch.uint8), stable=True)[:patches]
            columns, rows = columns.at(take), rows[take]
        full = tokens_of(frames([view for item in items for view in item.grid]), rows.device)
        first = np.cumsum([0, *(item.cells for item in items)])[:-1]
        cell = columns.cell + torch.from_numpy(np.repeat(first, list(map(sum, counts)))).to(rows.device)
        tokens = replace(
            full,
            counts=tuple(count for each in counts for count in each),
            index=full.index[cell],
            sizes=columns.sizes,
            coords=torch.cat([full.coords[cell, :1], columns.coords], dim=1),
            history=tuple(
                tuple(count for each in then for count in each)
                for then in zip(*(plan.entry_history(item) for item in items))
            ),
        )
        return Images(plan, tokens, rows, np.repeat([i for i, _, _ in within], [len(item.spans) for item in items]))


def _attention(plan: Plan, layer: Any) -> Any:
    """Return the attention of a decoder layer.

    Raises:
        UnsupportedModelError: the layer is not called as this module does.
    """
    found = [module for module in layer.modules() if isinstance(module, Attention)]
    takes = list(inspect.signature(layer.forward).parameters)
    if len(found) != 1 or takes[:3] != ["positions", "hidden_states", "residual"]:
        raise UnsupportedModelError(
            f"{plan.method.name()} acts inside the language model, whose {type(layer).__name__} is not called as the layers of "
            "Llama and Qwen are: use a method that acts before the language model"
        )
    if found[0].sliding_window is not None:
        raise UnsupportedModelError(
            f"{plan.method.name()} acts inside the language model, which has sliding windows, and tokens that left would "
            "shift them: use a method that acts before the language model"
        )
    return found[0]
