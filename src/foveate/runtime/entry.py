"""Where features, positions and text meet: which tokens of the prompt are visual, and which span each belongs to.

Stock code hands over features only, perhaps repeated for beams or cut into chunks. A placeholder's rank among its row's
placeholders is its feature row, and the `Record` of the tower call knows the span of that row. All of it is host-side
arithmetic on one boolean mask: the one device synchronisation of a prefill.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InputError
from foveate.models.family import Family
from foveate.ops.segments import offsets
from foveate.runtime.context import DecoderPass, Record
from foveate.runtime.encodings import KINDS, encoded_of
from foveate.runtime.layout import Rows, frames, tokens_of
from foveate.runtime.marks import holes
from foveate.runtime.positions import places_of
from foveate.runtime.prompt import Inputs, Prompt
from foveate.runtime.recalling import frames_of
from foveate.runtime.samples import begins_in, samples_of
from foveate.tokens import Reduction, Spans, Tokens

_NUMBER = itertools.count()


class Entry:
    """Finds the visual tokens of a prompt, the holes among them, and the samples that are packed into its rows."""

    def __init__(self, base: nn.Module, config: Any, family: Family, holes: bool) -> None:
        self.base, self.config, self.family, self.holes = base, config, family, holes
        self.states: frozenset[Hashable] = frozenset()  # what sites ask of vision blocks

    def inputs(self, prompt: Prompt | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Return what the base model was called with, as a part of ``prompt``."""
        encoded, embeds = encoded_of(kwargs), kwargs.get("inputs_embeds")
        places = {} if embeds is None or prompt is None else prompt.take(*embeds.shape[:2])
        brings = tuple(
            pixels
            for pixels in self.family.modalities
            if kwargs.get(pixels) is not None or KINDS[pixels] in encoded or pixels in places
        )
        ids = kwargs.get("input_ids", args[0] if args else None)
        return Inputs(ids, embeds, brings, kwargs.get("attention_mask"), places)

    def arrive(self, call: DecoderPass, inputs: Inputs, embeds: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Note what arrives in ``embeds (B, L, C)``, with ``kwargs`` of the language model; the same without holes."""
        masks = [self._placeholders(inputs, pixels) for pixels in inputs.modalities]
        flags = [*masks, torch.ones_like(masks[0]) if call.present is None else call.present]
        looks = self.holes or any(record.hole is not None for record in call.records)  # of another model, it may be
        if looks:
            flags.append(holes(embeds))
        begins = begins_in(kwargs, inputs.mask, call.batch, call.length, call.past)
        if begins is not None:
            flags.append(begins)
        host = torch.stack([flag.to(embeds.device) for flag in flags]).cpu()
        visual, present = list(host[: len(masks)]), host[len(masks)]
        made, unseen = {record.pixels: record for record in call.records}, not call.records
        call.records = [made[pixels] for pixels in inputs.modalities] if made.keys() >= set(inputs.modalities) else []
        for record in call.records:
            record.consumed = True
            if call.past == 0:
                record.seen.clear()
                record.progress.clear()
        call.layout, call.names, cell = visual_rows(visual, call.records, embeds)
        if unseen:  # no tower has said what comes
            call.trace.views += [(1, *shape) for shape in call.layout.tokens.spans.shape]
        for name in self.states if call.records and all(r.block_states for r in call.records) else ():
            states = torch.cat([record.block_states[name] for record in call.records])
            call.tower[name] = states[cell.to(states.device)]
        call.frames = frames_of(call.layout.tokens, cell, call.records) if call.records else ()
        home = home_of(call, cell.to(embeds.device))
        if call.present is not None and not bool(present.all()):
            lengths = tuple(int(n) for n in present.sum(1))
            call.layout = replace(call.layout, lengths=lengths, valid=call.present.to(embeds.device))
        begins = None if begins is None else host[-1]
        anywhere = torch.stack(visual).any(0)
        call.samples = samples_of(anywhere, present, begins, embeds.device)
        columns = anywhere.any(0).nonzero()
        call.states.images = call.past + int(columns[-1]) + 1 if len(columns) else call.states.images
        tokens = call.layout.tokens
        if call.samples.several:
            tokens = replace(tokens, spans=call.samples.spans(tokens, call.layout.slot.cpu()))
            call.layout = replace(call.layout, tokens=tokens)
        hole = host[len(masks) + 1] if looks else None
        if hole is None or not bool(hole.any()):
            if call.layout.place is not None:  # nothing is missing, but what was merged may have moved
                call.arrived = Reduction(torch.arange(len(tokens), device=embeds.device), tokens.counts)
            return embeds
        missing = hole[call.layout.row.cpu(), call.layout.slot.cpu()]
        keep = (~missing).nonzero().flatten()
        counts = torch.bincount(tokens.segment.cpu()[keep], minlength=len(tokens.counts)).tolist()
        keep = keep.to(embeds.device)
        groups = None if home is None else partial(_groups, home, keep)
        call.arrived = Reduction(keep, tuple(int(n) for n in counts), groups=groups)
        return torch.where(flags[len(masks) + 1][..., None], embeds.new_zeros(()), embeds)

    def count(self, inputs: Inputs) -> Tensor:
        """Tell how many placeholders a forward brings that no site looks at, on its device."""
        return torch.stack([self._placeholders(inputs, pixels).sum() for pixels in inputs.modalities]).sum()

    def _placeholders(self, inputs: Inputs, pixels: str) -> Tensor:
        """``(B, L)`` bool: the placeholders of one modality, found as stock code finds them."""
        if pixels in inputs.places:
            return inputs.places[pixels]
        token = getattr(self.config, self.family.modalities[pixels])
        if inputs.input_ids is not None:
            return inputs.input_ids == int(token)
        if inputs.inputs_embeds is None:
            raise InputError("images came without input_ids or inputs_embeds")
        table: Any = self.base.get_input_embeddings()  # type: ignore[operator]
        vector: Tensor = table(torch.tensor(token, device=inputs.inputs_embeds.device))
        return (inputs.inputs_embeds == vector).all(-1)


def visual_rows(
    masks: Sequence[Tensor], records: Sequence[Record], embeds: Tensor
) -> tuple[Rows, list[tuple[int, int, int]] | None, Tensor]:
    """Return the complete layout of a prompt and its visual tokens.

    Args:
        masks: ``(B, L)`` bool on the host, the placeholders of each modality, in the order of ``records``.
        records: what the tower encoded for each modality; may be empty, when features were computed elsewhere.
        embeds: ``(B, L, C)`` with the features in place (chunked prefill finds its place by them).

    Returns:
        The layout; for each span ``(record, row, clip)`` if the prompt comes in chunks, else None; and ``(N,)`` the cell of
        each token among those of all records.
    """
    batch, length = masks[0].shape
    device = embeds.device
    parts: list[tuple[Tensor, ...]] = []  # flat position, span, index in span, patch row of the record; per modality
    spans = Spans((), (), (), ())
    names: list[tuple[int, int, int]] = []
    chunked = False
    for m, mask in enumerate(masks):
        record = records[m] if len(records) == len(masks) else None
        position = mask.flatten().nonzero().flatten()
        if len(position) == 0:
            continue
        if record is None:
            feature, table = None, _unknown(mask)
        else:
            table = _table(record)
            feature, part = _feature_rows(mask, record, len(table[0]), embeds)
            chunked |= part
        part_spans, number, span, index, keep, origin = _spans(mask, position, feature, table)
        clips = [table[2].clip[span] for span in number]
        names += [(m, row, clip) for row, clip in zip(part_spans.row, clips)]
        named = {} if record is None else record.numbers
        origin = origin + sum(sum(t * h * w for t, h, w in r.order.grid) for r in records[:m])
        parts.append((position[keep], span[keep] + len(spans), index[keep], origin[keep]))
        spans = Spans(
            spans.shape + part_spans.shape,
            spans.clip + _numbers(named, "clip", part_spans.row, clips),
            spans.frame + part_spans.frame,
            spans.row + part_spans.row,
            number=spans.number + _numbers(named, "span", part_spans.row, number),
        )
    if not parts:
        parts = [(torch.empty(0, dtype=torch.long),) * 4]
    position, span, index, origin = (torch.cat(column) for column in zip(*parts))
    position, order = position.sort()
    span, index, origin = span[order], index[order], origin[order]
    # Spans in the order of the prompt, their tokens one after another.
    appearance, span = _renumber(span, len(spans))
    spans = Spans(
        tuple(spans.shape[s] for s in appearance),
        tuple(spans.clip[s] for s in appearance),
        tuple(spans.frame[s] for s in appearance),
        tuple(spans.row[s] for s in appearance),
        number=tuple(spans.number[s] for s in appearance),
    )
    counts = torch.bincount(span, minlength=len(spans)).tolist()
    order = torch.argsort(span, stable=True)
    position, span, index, origin = position[order], span[order], index[order], origin[order]
    complete = tokens_of(spans)
    at = torch.tensor(offsets(spans.sizes)[:-1], dtype=torch.long)[span] + index
    sizes, coords = torch.ones(len(index), device=device), complete.coords[at].to(device)
    known = records if len(records) == len(masks) else []
    if any(record.sizes is not None or record.coords is not None for record in known):
        sizes, coords = _merged(records, origin.to(device), coords)
    tokens = Tokens(spans, tuple(int(n) for n in counts), index.to(device), sizes, coords)
    row, slot = (position // length).to(device), (position % length).to(device)
    rows = Rows(length, length, (length,) * batch, tokens, row, slot)
    if any(record.coords is not None for record in known):
        rows = replace(rows, place=places_of(tokens, slot))
    return rows, [names[s] for s in appearance] if chunked else None, origin


def _numbers(
    known: dict[tuple[str, int, int], int], kind: str, rows: Sequence[int], which: Sequence[int]
) -> tuple[int, ...]:
    """Return a number of its own for each span, or video, of each batch row: the same one in every chunk of a prompt."""
    return tuple(known.setdefault((kind, row, each), next(_NUMBER)) for row, each in zip(rows, which))


def _table(record: Record) -> tuple[Tensor, Tensor, Spans]:
    """For every feature row: its span (-1: no patch) and its index in the span; and the spans."""
    spans, patch = frames(record.order.grid), record.order.patch
    start = torch.tensor(offsets(spans.sizes))
    span = torch.searchsorted(start, patch, right=True) - 1  # -1 where there is no patch
    return span, torch.where(span < 0, 0, patch - start[span.clamp(min=0)]), spans


def _unknown(mask: Tensor) -> tuple[Tensor, Tensor, Spans]:
    """Features of unknown origin: every run of placeholders is a span of one line."""
    before = torch.nn.functional.pad(mask[:, :-1], (1, 0))
    start = (mask & ~before).flatten()
    run = (start.cumsum(0) - 1)[mask.flatten()]
    sizes = torch.bincount(run)
    index = torch.arange(len(run)) - (sizes.cumsum(0) - sizes)[run]
    rows = start.nonzero().flatten() // mask.shape[1]
    grid = [(1, 1, int(n)) for n in sizes]
    return run, index, frames(grid, [int(r) for r in rows])


def _feature_rows(mask: Tensor, record: Record, n_features: int, embeds: Tensor) -> tuple[Tensor, bool]:
    """Feature row of every placeholder ``(n,)``, and whether this forward brings a part of the features only."""
    per_row = mask.sum(1)
    total = int(per_row.sum())
    rank = mask.cumsum(1)[mask] - 1  # inside its row
    row = mask.nonzero()[:, 0]
    images = record.order.starts
    if total % n_features == 0 and not record.progress:
        copies = total // n_features  # beams and samples repeat every row of the batch this many times
        if copies and mask.shape[0] % copies == 0:
            samples = per_row.view(-1, copies)
            ends = samples[:, 0].cumsum(0)
            if bool((samples == samples[:, :1]).all()) and set(ends.tolist()) <= set(images):
                return (ends - samples[:, 0]).repeat_interleave(copies)[row] + rank, False
    # Chunked prefill: a row goes on where it was; a new row is found by its first features.
    starts = torch.zeros(mask.shape[0], dtype=torch.long)
    for b in [int(b) for b in per_row.nonzero().flatten()]:
        if b not in record.progress:
            here = embeds[b][mask[b].to(embeds.device)]
            record.progress[b] = _find(here, record, images[:-1])
        starts[b] = record.progress[b]
        record.progress[b] += int(per_row[b])
    return starts[row] + rank, True


def _find(here: Tensor, record: Record, images: Sequence[int]) -> int:
    """First image whose features begin like ``here (n, C)``. Equal images have equal spans, so any of them will do."""
    n = len(here)
    features = record.features.to(here.device, here.dtype)
    for start in images:
        there = features[start : start + n]
        if len(there) == n and bool(((here == there) | (here.isnan() & there.isnan())).all()):
            return start
    raise InputError("this chunk of the prompt does not continue with features of the last call of the vision tower")


def _merged(records: Sequence[Record], origin: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes and coordinates of tokens that the tower has merged or moved; ``origin`` is their cell among all of the grid."""
    sizes, places = [], []
    for record in records:
        place = tokens_of(frames(record.order.grid), coords.device).coords
        sizes.append(coords.new_ones(len(place)) if record.sizes is None else record.sizes)
        places.append(place if record.coords is None else record.coords)
    return torch.cat(sizes)[origin], torch.cat(places)[origin]


def home_of(call: DecoderPass, origin: Tensor) -> Tensor | None:
    """``(N,)`` the token that each has become part of in the tower, -1: none; None: nobody says.

    ``origin`` is the cell of each token among those of all records.
    """
    records, layout = call.records, call.layout
    if layout is None or all(record.home is None for record in records):
        return None
    sizes = [sum(t * h * w for t, h, w in record.order.grid) for record in records]
    cells = [torch.arange(n, device=origin.device) if r.home is None else r.home for r, n in zip(records, sizes)]
    of_cell = torch.cat([torch.where(each < 0, -1, each + at) for each, at in zip(cells, offsets(sizes))])
    token = torch.full((call.batch, sum(sizes)), -1, device=origin.device)
    token = token.index_put((layout.row, origin), torch.arange(len(origin), device=origin.device))
    to = of_cell[origin]
    return torch.where(to < 0, -1, token[layout.row, to.clamp(min=0)])


def _groups(home: Tensor, keep: Tensor) -> Tensor:
    """The same as `Reduction.groups` has it, of the tokens ``keep`` that are no holes."""
    rank = torch.full((len(home) + 1,), len(keep), device=home.device)
    return rank.index_copy(0, keep, torch.arange(len(keep), device=home.device))[home]


def _spans(
    mask: Tensor, position: Tensor, feature: Tensor | None, table: tuple[Tensor, Tensor, Spans]
) -> tuple[Spans, list[int], Tensor, Tensor, Tensor, Tensor]:
    """Return the spans of one modality here, which of the table's they are, and for each placeholder: span, index in it, is it
    a patch, which of all."""
    span_of, index_of, facts = table
    start = torch.tensor(offsets(facts.sizes)[:-1], dtype=torch.long)
    if feature is None:
        return (
            facts,
            list(range(len(facts))),
            span_of,
            index_of,
            torch.ones(len(position), dtype=torch.bool),
            start[span_of] + index_of,
        )
    row = position // mask.shape[1]
    span, index = span_of[feature], index_of[feature]
    keep = span >= 0
    # The same span in two rows (beams, one image asked about twice) is two spans.
    key = torch.where(keep, row * (len(facts) + 1) + span, -1)
    unique = torch.unique(key[keep])
    number = torch.searchsorted(unique, key.clamp(min=0))
    rows, old = unique // (len(facts) + 1), unique % (len(facts) + 1)
    old_list, row_list = [int(s) for s in old], [int(r) for r in rows]
    return (
        Spans(
            tuple(facts.shape[s] for s in old_list),
            tuple(r * len(facts) + facts.clip[s] for s, r in zip(old_list, row_list)),
            tuple(facts.frame[s] for s in old_list),
            tuple(row_list),
        ),
        old_list,
        number,
        index,
        keep,
        start[span.clamp(min=0)] + index,
    )


def _renumber(span: Tensor, n: int) -> tuple[list[int], Tensor]:
    """Spans by first appearance: old numbers in new order, and the new number of each token."""
    first = torch.full((n,), len(span)).scatter_reduce(0, span, torch.arange(len(span)), "amin")
    order = torch.argsort(first, stable=True)
    order = order[first[order] < len(span)]
    rank = torch.zeros(n, dtype=torch.long)
    rank[order] = torch.arange(len(order))
    return [int(s) for s in order], rank[span]
