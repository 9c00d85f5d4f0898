"""From an engine's images to the features that its language model gets: fewer, each with its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InputError
from foveate.ops.segments import offsets, segment_ids
from foveate.runtime.engines import Record, Tower, Trace, frames, holes, mark, tokens_of
from foveate.serving.budgets import Choice
from foveate.serving.plan import Item, Plan
from foveate.serving.vllm.attention import all_heads
from foveate.serving.vllm.columns import Columns
from foveate.serving.vllm.engine import Engine
from foveate.tokens import Tokens


class Vision:
    """The plan on the vision side of a model of vLLM.

    Args:
        model: of vLLM, whether its weights are loaded or not.

    Attributes:
        width: channels of the language model. What a tower gives beyond them (deepstack) is no method's business, and stays
            beside the feature that it came with.
    """

    def __init__(self, model: Any, engine: Engine, plan: Plan) -> None:
        self.engine, self.plan, self.config = engine, plan, model.config
        self.words: Callable[[Tensor], Tensor] = model.embed_input_ids
        self.width: int = model.config.get_text_config().hidden_size
        self.tower: Tower | None = None
        self.forwards: list[tuple[Any, Callable[..., Any]]] = []
        if plan.in_tower:
            base = engine.graft(model)
            self.tower = Tower(base, engine.family_of(base.config), all_heads)
            self.forwards = engine.forwards(model, base)
            self._install()

    def _install(self) -> None:
        for module, forward in self.forwards:
            module.forward = forward

    @contextmanager
    def _stock(self) -> Iterator[None]:
        for module, _ in self.forwards:
            del module.forward
        try:
            yield
        finally:
            self._install()

    def __call__(
        self, embed: Callable[..., Sequence[Tensor]], kwargs: dict[str, Any], choice: Choice, ids: Sequence[Tensor]
    ) -> list[Tensor]:
        """Features of each image or video, as the language model gets them, columns beside them.

        Args:
            embed: the model's function that encodes them.
            kwargs: its arguments.
            choice: what the prompts of all of them ask for.
            ids: of the text in the range of each, as in `prompt.INSIDE`.
        """
        plan, records = self.plan.of(choice), []
        if self.tower is not None:
            self.tower.act(plan.tower)
        outputs = [out.flatten(0, -2) for out in embed(**kwargs)]
        if self.tower is not None:
            records = self.tower.take_records()
        if not outputs:
            return outputs
        facts = self.engine.facts(kwargs) or [("image", {})] * len(outputs)
        items = [self.engine.shape(self.config, *fact, len(out)) for fact, out in zip(facts, outputs)]
        full, rest = _tokens(outputs, items, records, self._between(items, ids, outputs))
        if all(map(plan.shortens, items)):
            return self._shortened(plan, full, rest, items)
        with self._stock():
            stock = [out.flatten(0, -2) for out in embed(**kwargs)]
        found, rests = [], rest.split([item.features - item.cells for item in items])
        for i, item in enumerate(items):  # small images are rare
            if plan.shortens(item):
                found += self._shortened(plan, _only(full, items, i), rests[i], [item])
            else:
                text = self._between([item], ids[i : i + 1], [stock[i]])
                found += _rows(*_tokens([stock[i]], [item], [], text), [item])
        return found

    def _between(self, items: Sequence[Item], ids: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor | None:
        """Embed the text between the lines of the items' images, ``(W, C)``, where it counts as features; else None."""
        if all(item.features == len(out) for item, out in zip(items, outputs)):
            return None
        return self.words(torch.cat([each[each >= 0] for each in ids]).to(outputs[0].device))

    def _shortened(self, plan: Plan, tokens: Tokens, rest: Tensor, items: Sequence[Item]) -> list[Tensor]:
        if plan.leaves_holes:
            counts = tuple(n for item in items for n in plan.tower_counts(item))
            order = torch.argsort(holes(tokens.hidden).to(torch.uint8), stable=True)
            tokens = tokens.select(order[: sum(counts)], counts)
        trace = Trace()
        tokens, further = replace(tokens, hidden=tokens.hidden[:, : self.width]), tokens.hidden[:, self.width :]
        for action in plan.entry:
            reduction = action.decide(trace, tokens)
            tokens, further = reduction.survivors(tokens), further[reduction.keep]
        planned = tuple(n for item in items for n in plan.entry_counts(item))
        if tokens.counts != planned:
            raise InputError(f"{plan.method!r} kept {tokens.counts}, not {planned} as planned: its budget is not fixed")
        return _rows(replace(tokens, hidden=torch.cat([tokens.hidden, further], dim=1)), rest, items)


def _tokens(
    outputs: Sequence[Tensor], items: Sequence[Item], records: Sequence[Record], between: Tensor | None
) -> tuple[Tokens, Tensor]:
    """All tokens of the items, those that have left marked, and the features that stand for no patch, which are ``between`` or
    among the ``outputs``."""
    features = torch.cat(list(outputs))
    known = [record.hole for record in records if record.hole is not None]
    if known:
        features = mark(features, torch.cat(known).to(features.device), encoding=0)
    hidden, rest = features, features[:0] if between is None else between.to(features)
    if between is None and any(item.gaps for item in items):
        patch = torch.cat([item.patches() for item in items])
        hidden, rest = (features[which.nonzero().flatten().to(features.device)] for which in (patch >= 0, patch < 0))
    tokens = replace(tokens_of(frames([view for item in items for view in item.grid]), hidden.device), hidden=hidden)
    for record in records:
        if record.sizes is not None:
            tokens = replace(tokens, sizes=record.sizes.to(hidden.device))
        if record.coords is not None:
            tokens = replace(tokens, coords=record.coords.to(hidden.device))
    return tokens, rest


def _only(tokens: Tokens, items: Sequence[Item], i: int) -> Tokens:
    """Return the tokens of one item, which has all of them."""
    first = sum(item.cells for item in items[:i])
    rows = slice(first, first + items[i].cells)
    alone = tokens_of(items[i].spans, tokens.hidden.device)
    return replace(alone, hidden=tokens.hidden[rows], sizes=tokens.sizes[rows], coords=tokens.coords[rows])


def _rows(tokens: Tokens, rest: Tensor, items: Sequence[Item]) -> list[Tensor]:
    """Return the tokens of each item and, in their places, its features that stand for no patch; columns beside them."""
    device, spans = tokens.index.device, [item.spans for item in items]
    starts = torch.tensor([start for each in spans for start in offsets(each.sizes)[:-1]], device=device)
    widths = torch.tensor([width for each in spans for _, width in each.shape], device=device)
    start, width = starts[tokens.segment], widths[tokens.segment]
    y, x = (tokens.coords[:, 1:] + 0.5).floor().long().unbind(1)
    columns = Columns(start + tokens.index, start + y * width + x, tokens.sizes, tokens.coords[:, 1:])
    of_item = segment_ids([len(each) for each in spans])
    counts = torch.zeros(len(items), dtype=torch.long).index_add_(0, of_item, torch.tensor(tokens.counts))
    if not len(rest):
        return list(columns.beside(tokens.hidden).split(counts.tolist()))
    return _with_rest(columns, tokens.hidden, rest, items, counts)


def _with_rest(columns: Columns, hidden: Tensor, rest: Tensor, items: Sequence[Item], counts: Tensor) -> list[Tensor]:
    """`Columns.beside` of the tokens, ``counts (I,)`` of each item, with the rest between them."""
    patches, device = [item.patches() for item in items], hidden.device
    firsts = offsets([len(patch) for patch in patches])[:-1]
    rows, starts = torch.cat([(patch >= 0).nonzero().flatten() for patch in patches]), offsets([i.cells for i in items])
    cells, first = (torch.tensor(x[: len(items)]).repeat_interleave(counts).to(device) for x in (starts, firsts))
    row_of = rows.to(device)
    places = first + row_of[cells + columns.cell]  # among all features of the items, as if nothing had left
    between = torch.cat(patches) < 0
    own = torch.cat([(patch < 0).nonzero().flatten() for patch in patches]).to(device)
    order = torch.cat([places, between.nonzero().flatten().to(device)]).argsort()
    none = torch.zeros_like(own)
    whole = Columns(
        cell=torch.cat([columns.cell, none - 1]),
        row=torch.cat([row_of[cells + columns.row], own]),
        sizes=torch.cat([columns.sizes, none + 1.0]),
        coords=torch.cat([columns.coords, none[:, None].expand(-1, 2).float()]),
    )
    lengths = [count + item.features - item.cells for count, item in zip(counts.tolist(), items)]
    return list(whole.beside(torch.cat([hidden, rest]))[order].split(lengths))
