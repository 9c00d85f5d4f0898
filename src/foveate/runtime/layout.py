"""The layout of a padded batch: the map from the tokens present now to the full sequence. Immutable; reducing one gives a new
one. (That of a packed sequence is `foveate.runtime.packed.Packed`; what both can do is `foveate.runtime.protocol.Layout`.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from foveate.answers import Sight
from foveate.ops.segments import offsets, segment_ids, within
from foveate.runtime.growing import New, columns, grown
from foveate.runtime.protocol import Layout
from foveate.tokens import Reduction, Spans, Tokens

T = TypeVar("T")

HOLE = float("nan")  # what a row is filled with whose token has left


def varied(x: T, **changes: Any) -> T:
    """`dataclasses.replace` without a look at every field, which takes long where it is done at every step of decoding.

    What ``x`` checks when it is made is not checked again.
    """
    new = object.__new__(type(x))
    new.__dict__.update(x.__dict__, **changes)
    return new


def tokens_of(spans: Spans, device: torch.device | str = "cpu") -> Tokens:
    """Return the complete tokens of ``spans`` in raster order, without hidden states."""
    counts = spans.sizes
    index = within(counts)
    segment = segment_ids(counts)
    width = torch.tensor([width for _, width in spans.shape], dtype=torch.long)[segment]
    frame = torch.tensor(spans.frame, dtype=torch.long)[segment]
    coords = torch.stack([frame, index // width, index % width], dim=-1).float()
    return Tokens(
        spans=spans,
        counts=counts,
        index=index.to(device),
        sizes=torch.ones(len(index), device=device),
        coords=coords.to(device),
    )


def frames(grid: Sequence[tuple[int, int, int]], rows: Sequence[int] | None = None) -> Spans:
    """One span per frame of ``grid`` [(frames, height, width)]; ``rows`` is the sample of each grid entry."""
    clip = [i for i, (t, _, _) in enumerate(grid) for _ in range(t)]
    return Spans(
        shape=tuple((grid[i][1], grid[i][2]) for i in clip),
        clip=tuple(clip),
        frame=tuple(f for t, _, _ in grid for f in range(t)),
        row=tuple(clip if rows is None else [rows[i] for i in clip]),
    )


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens present in a padded batch ``(B, P, ...)``, of which some are visual: the language model, CLIP-like towers, and
    towers whose images stand one after another in a single row.

    Attributes:
        width: tokens per row now, ``P``.
        full: tokens per row of the full sequence, ``L``.
        lengths: ``(B,)`` ints, tokens of each row that are not padding.
        tokens: the visual ones, row after row.
        row, slot: ``(N * unit,)`` where the rows of each visual token are now.
        index: ``(B, P)`` position in the full sequence, or None: nothing was removed.
        valid: ``(B, P)`` bool, False for padding, or None: there is none. The prompt's own padding leaves with the
            first token that does; what is padding then is ours.
        align: the side where tokens stay when rows get different lengths.
        unit: rows per token (the patches that stock code puts together after the tower; 1 in the language model).
        place: ``(N,)`` position in the full sequence whose position id each visual token takes; None: its own.
        sides: patches down and across of every span, where units do not cover them; (): they do. The rows of what is not
            covered are there, like text, and are no token's.
        sight: who may attend to whom besides the model's own mask, with the group of each visual token; None: it is all.
        merged, moved: some token stands for several; is not at its own place.
        bias: ``(N,)`` what is added to the attention logits of the visual tokens' keys; None: nothing is.
    """

    width: int
    full: int
    lengths: tuple[int, ...]
    tokens: Tokens
    row: Tensor
    slot: Tensor
    index: Tensor | None = None
    valid: Tensor | None = None
    align: str = "right"
    place: Tensor | None = None
    unit: int = 1
    sides: tuple[tuple[int, int], ...] = ()
    sight: Sight | None = None
    merged: bool = False
    moved: bool = False
    bias: Tensor | None = None

    @property
    def has_mask(self) -> bool:
        """Whether attention is to be told more than which tokens are present."""
        return self.sight is not None or self.bias is not None

    @property
    def n_rows(self) -> int:
        """Rows in all, padding included."""
        return len(self.lengths) * self.width

    @property
    def patch_sides(self) -> tuple[tuple[int, int], ...]:
        """Patches down and across of every span."""
        m = math.isqrt(self.unit)
        return self.sides or tuple((height * m, width * m) for height, width in self.tokens.spans.shape)

    def present(self) -> list[int]:
        """Rows of each span that are present, its token's and those of none."""
        full = zip(self.patch_sides, self.tokens.spans.sizes, self.tokens.counts)
        return [height * width + (n - size) * self.unit for (height, width), size, n in full]

    def rows(self, x: Tensor) -> Tensor:
        """Return the visual rows of ``x (B, P, ...)``, packed: ``(N * unit, ...)``."""
        return x.flatten(0, 1)[self.flat(x.device)]

    def pairs(self, shown: Rows) -> tuple[tuple[int, int], ...]:
        """Rows of each image, and those that an attention is ``shown`` of it, where several images share a single row."""
        if len(self.lengths) > 1 or len(self.tokens.counts) == 1:
            return ()
        return tuple(zip(self.present(), shown.present()))

    def attended(self, x: Tensor) -> Tensor:
        """Return the visual rows of ``x (B, P', ...)``, packed: ``(N * unit, ...)``. Rows that have left since may stand before
        those of the layout (CLS, at the output of a tower)."""
        return self.rows(x[:, x.shape[1] - self.width :].contiguous())

    def pick(self, x: Tensor) -> Tensor:
        """Rows ``(B, P', C)`` as tokens ``(N, unit * C)``; as above, others may stand before those of the layout."""
        rows = self.rows(x if x.shape[1] == self.width else x[:, x.shape[1] - self.width :].contiguous())
        return rows if self.unit == 1 else rows.reshape(len(self.tokens), self.unit * x.shape[-1])

    def put(self, x: Tensor, values: Tensor) -> Tensor:
        """``x (B, P, C)`` with its visual rows replaced by tokens ``(N, unit * C)``."""
        values = values.to(x.dtype).reshape(-1, *x.shape[2:])
        new = x.flatten(0, 1).index_copy(0, self.flat(x.device), values).view_as(x)
        return new if x.is_contiguous() else torch.empty_like(x).copy_(new)  # a product rounds as its strides are

    def per_row(self, values: Tensor) -> Tensor:
        """Values ``(N, k)`` of tokens for each row ``(B, P, k)``, zeros where it is no visual token's."""
        return self.put(
            values.new_zeros(len(self.lengths), self.width, values.shape[1]), values.repeat_interleave(self.unit, 0)
        )

    def of_full(self, x: Tensor, axis: int) -> Tensor:
        """Those of the full sequence's rows ``x``, which stand along ``axis``, that are present."""
        assert self.index is not None
        return take_rows(x, self.index, axis)

    def seqlens(self, cu_seqlens: Tensor) -> Tensor:
        """Cumulative lengths of those images in a single row that still have rows."""
        lengths = [n for n in self.present() if n]
        return torch.tensor(offsets(lengths or [self.width]), dtype=cu_seqlens.dtype).to(
            cu_seqlens.device, non_blocking=True
        )

    def table(self) -> tuple[Tensor, Sequence[tuple[int, int]]]:
        """``(n_rows,)`` which of the full sequences' rows, one sequence below the other, are present; and two steps among these
        rows, one patch down and one to the right (`foveate.runtime.positions.rotary_at`)."""
        assert self.index is not None
        sides, batch = self.patch_sides, len(self.lengths)
        first = offsets([h * w for h, w in sides]) if batch == 1 else range(0, batch * self.full, self.full)
        down = ((a, a + width) for a, (height, width) in zip(first, sides) if height > 1)
        right = ((a, a + 1) for a, (_, width) in zip(first, sides) if width > 1)
        start = torch.arange(batch, device=self.index.device)[:, None] * self.full
        return (self.index + start).flatten(), (next(down, (0, 0)), next(right, (0, 0)))

    def only(self, keep: Tensor, tokens: Tokens) -> Rows:
        """The same places, of the tokens ``keep (K,)`` alone, which are now ``tokens``."""
        row, slot = (each.view(-1, self.unit)[keep].flatten() for each in (self.row, self.slot))
        return replace(self, tokens=tokens, row=row, slot=slot)

    def flat(self, device: torch.device) -> Tensor:
        """``(N * unit,)`` places of the visual rows in ``x.flatten(0, 1)``."""
        return (self.row * self.width + self.slot).to(device)

    def reduce(self, reduction: Reduction) -> tuple[Rows, Tensor | None]:
        """Return the layout of the survivors, and ``take (B, P')``: the slot each of its positions had (None: all stay)."""
        tokens, merged, moved = reduced(self, reduction)
        if len(tokens) == len(self.tokens) and (self.place is None or self.index is not None):
            # Nothing goes, and no token has moved to another one's position.
            return replace(self, tokens=tokens, merged=merged, moved=moved, bias=_bias(self.bias, reduction)), None
        lengths = list(self.lengths)
        for sample, before, after in zip(self.tokens.spans.row, self.tokens.counts, reduction.counts):
            lengths[sample if len(lengths) > 1 else 0] += (after - before) * self.unit
        width = max(1, *lengths)  # a chunk of nothing but dropped tokens still needs a (padding) row
        stays = self.valid
        if stays is None:
            stays = torch.ones(len(lengths), self.width, dtype=torch.bool, device=self.row.device)
        kept = self.only(reduction.keep, tokens)
        row, slot = kept.row, kept.slot
        stays = stays.index_put((self.row, self.slot), torch.zeros((), dtype=torch.bool, device=stays.device))
        stays = stays.index_put((row, slot), torch.ones((), dtype=torch.bool, device=stays.device))
        rank = stays.cumsum(1)
        # A stable sort moves what is gone to one side and keeps the order of the rest, without asking for its size.
        if self.align == "right":
            take = torch.argsort(stays.to(torch.uint8), dim=1, stable=True)[:, self.width - width :]
            shift = width - rank[:, -1]
        else:
            take = torch.argsort((~stays).to(torch.uint8), dim=1, stable=True)[:, :width]
            shift = torch.zeros_like(rank[:, -1])
        layout = replace(
            self,
            width=width,
            lengths=tuple(lengths),
            tokens=tokens,
            row=row,
            slot=rank[row, slot] - 1 + shift[row],
            index=take if self.index is None else self.index.gather(1, take),
            valid=None if min(lengths) == width else stays.gather(1, take),
            place=None if self.place is None else self.place[reduction.keep],
            sight=None if self.sight is None else replace(self.sight, group=self.sight.group[reduction.keep]),
            merged=merged,
            moved=moved,
            bias=_bias(self.bias, reduction),
        )
        return layout, take

    def positions(self) -> Tensor:
        """``(B, P)`` position in the full sequence whose position id each token takes."""
        assert self.index is not None
        return self.index if self.place is None else self.index.index_put((self.row, self.slot), self.place)

    def slots(self) -> Tensor:
        """``(B, L)`` where each token of the full sequence is now; of no use for one that has left."""
        assert self.index is not None
        here = torch.arange(self.width, device=self.index.device).expand_as(self.index)
        places = torch.where(self.appended(), self.full, self.index)
        return here.new_zeros(len(self.index), self.full + 1).scatter(1, places, here)[:, :-1]

    def appended(self) -> Tensor:
        """``(B, P)`` bool: tokens that are at none of the places of the full sequence."""
        none = torch.zeros(len(self.lengths), self.width, dtype=torch.bool, device=self.row.device)
        marks = self.tokens.marks
        return none if marks is None else none.index_put((self.row, self.slot), marks)

    def scatter(self, x: Tensor, fill: float = 0.0, length: int | None = None) -> Tensor:
        """``x (B, P, C)``, or the last of its rows, back at its places among the last ``length`` rows (None: all), ``fill``
        elsewhere."""
        if self.index is None:
            return x
        length = length or self.full
        batch = torch.arange(x.shape[0], device=x.device)[:, None] * length
        cut = self.width - x.shape[1]
        place = self.index[:, cut:].to(x.device) - (self.full - length)
        stays = None if self.valid is None else self.valid[:, cut:].to(x.device)
        if self.tokens.marks is not None:
            own = ~self.appended()[:, cut:].to(x.device)
            stays = own if stays is None else stays & own
        if length < self.full:
            stays = place >= 0 if stays is None else stays & (place >= 0)
        place = place + batch
        if stays is not None:  # padding of ours goes to one extra row that is cut off again
            place = torch.where(stays, place, x.shape[0] * length)
        out = x.new_full((x.shape[0] * length + 1, x.shape[-1]), fill)
        out.index_copy_(0, place.flatten(), x.flatten(0, 1))
        return out[:-1].view(x.shape[0], length, -1)

    def places(self, tokens: Tensor) -> Tensor:
        """``(K, unit)`` where rows of the tokens ``tokens (K,)`` of a complete layout are in the full sequence."""
        return self.slot.view(-1, self.unit)[tokens]

    def grown(self, new: New) -> tuple[Rows, Tensor, Tensor]:
        """Return the layout with new tokens, and where it has them from; see `foveate.runtime.growing.grown`."""
        return grown(self, new)

    def beside(self, x: Tensor, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """``x (B, P, C)`` and behind each of its rows the new tokens ``rows (M, unit * C)`` that come to it."""
        row, column = columns(self, counts)
        at = torch.tensor([row, column]).to(x.device, non_blocking=True)
        room = x.new_zeros(len(x), max(column) + 1, x.shape[-1])
        return torch.cat([x, room.index_put((at[0], at[1]), rows.reshape(-1, x.shape[-1]).to(x))], dim=1)

    def of_sight(self, sight: Sight | None) -> Rows:
        """The same with another sight in force."""
        return replace(self, sight=sight)

    def first(self) -> Rows:
        """The layout of one token, the first of the full sequence, in a single row."""
        tokens = replace(self.tokens, marks=None)
        index = torch.arange(self.unit, device=tokens.index.device)[None]
        return varied(
            self, width=self.unit, tokens=tokens, index=index, valid=None, merged=False, moved=False, sight=None
        )

    def of_tokens(self, tokens: Tokens) -> Rows:
        """The same of tokens of which something else is known."""
        return replace(self, tokens=tokens)

    def patches(self) -> Rows:
        """The same tokens one by one, every patch a token (for parking below the level of a unit)."""
        return self if self.unit == 1 else replace(self, unit=1, tokens=patches_of(self.tokens, self.unit))

    def without_leading(self, n: int) -> Rows:
        """The same after the first ``n`` positions of every row were cut off (left-aligned layouts only)."""
        return replace(
            self,
            width=self.width - n,
            full=self.full - n,
            lengths=tuple(length - n for length in self.lengths),
            slot=self.slot - n,
            index=None if self.index is None else self.index[:, n:] - n,
            valid=None if self.valid is None else self.valid[:, n:],
        )


def take_rows(x: Tensor, take: Tensor, axis: int = 1) -> Tensor:
    """``x[b, take[b]]`` along ``axis`` of a batched tensor; a batch axis of 1 is shared by all rows.

    Args:
        x: ``(B or 1, ..., P, ...)`` with the tokens at ``axis``. A negative axis may have more axes before the batch.
        take: ``(B, P')``; or ``(P',)`` of a packed sequence ``(P, ...)``, which has no batch.
    """
    take = take.to(x.device)
    if take.dim() == 1:
        return x.index_select(0, take)
    if axis < 0:
        if x.dim() + axis > 1:
            return torch.stack([take_rows(part, take, axis) for part in x])
        axis += x.dim()
    if take.shape[0] == 1:
        return x.index_select(axis, take[0])
    if x.shape[0] == 1:
        x = x.expand(take.shape[0], *x.shape[1:])
    if axis == 1:  # one index_select is much faster than a gather with an expanded index
        flat = take + torch.arange(take.shape[0], device=x.device)[:, None] * x.shape[1]
        return x.reshape(-1, *x.shape[2:]).index_select(0, flat.flatten()).view(*take.shape, *x.shape[2:])
    shape = [take.shape[0], *(1,) * (x.dim() - 1)]
    shape[axis] = take.shape[1]
    target = list(x.shape)
    target[axis] = take.shape[1]
    return x.gather(axis, take.view(shape).expand(target))


def reduced(layout: Layout, reduction: Reduction) -> tuple[Tokens, bool, bool]:
    """Return the survivors, without hidden states; whether some token now stands for several; and whether one has moved."""
    tokens = replace(reduction.survivors(layout.tokens), hidden=layout.tokens.hidden)
    moves = reduction.coords is not None and len(tokens) < len(layout.tokens)  # a merger moves tokens
    return tokens, layout.merged or reduction.sizes is not None, layout.moved or moves


def _bias(before: Tensor | None, reduction: Reduction) -> Tensor | None:
    """What is added to the attention logits of the survivors' keys, by this reduction and by those before it."""
    if before is None:
        return reduction.bias
    kept = before[reduction.keep]
    return kept if reduction.bias is None else kept + reduction.bias


def displacement(t: Tokens) -> Tensor:
    """``(N, 2)`` how far each token's coordinates are from its own place, along y and x."""
    width = torch.tensor([w for _, w in t.spans.shape]).to(t.index.device, non_blocking=True)[t.segment]
    return t.coords[:, 1:] - torch.stack([t.index // width, t.index % width], dim=-1)


def patches_of(tokens: Tokens, unit: int) -> Tokens:
    """Return the patches of units of ``unit``, in the order of the units, those of one in raster order."""
    t, spans, m = tokens, tokens.spans, math.isqrt(unit)
    inner = torch.arange(unit, device=t.index.device)
    dy, dx = inner // m, inner % m
    width = torch.tensor([w for _, w in spans.shape]).to(t.index.device, non_blocking=True)[t.segment][:, None]
    y, x = t.index[:, None] // width * m + dy, t.index[:, None] % width * m + dx
    offset = torch.stack([torch.zeros_like(dy), dy, dx], -1).float() / m - (m - 1) / (2 * m)
    offset[:, 0] = 0.0
    return replace(
        t,
        spans=replace(spans, shape=tuple((h * m, w * m) for h, w in spans.shape)),
        counts=tuple(n * unit for n in t.counts),
        index=(y * (width * m) + x).flatten(),
        sizes=t.sizes.repeat_interleave(unit),
        coords=(t.coords[:, None] + offset).flatten(0, 1),
        marks=None if t.marks is None else t.marks.repeat_interleave(unit),
    )


def whole(
    tokens: Tokens, images: int, width: int, leading: int, unit: int, sides: tuple[tuple[int, int], ...] = ()
) -> Rows:
    """All rows of a padded tower: ``leading`` special ones of each of the ``images``, then its patches in raster order.

    With several images in a single row (``images`` is 1), they stand there one after another. ``sides`` as in `Rows`.
    """
    patches = tokens if unit == 1 else patches_of(tokens, unit)
    row, slot = patches.segment, patches.index
    first = starts(patches.spans, slot.device)
    if sides:
        across, covered = (torch.tensor([w for _, w in each]).to(row.device) for each in (sides, patches.spans.shape))
        slot = slot // covered[row] * across[row] + slot % covered[row]
        first = torch.tensor(offsets([h * w for h, w in sides])[:-1], dtype=torch.long, device=row.device)
    slot = slot + leading
    if images == 1:
        row, slot = torch.zeros_like(row), slot + first[row]
    return Rows(width, width, (width,) * images, tokens, row, slot, align="left", unit=unit, sides=sides)


def with_padding(rows: Rows) -> Rows:
    """The same, of images of several sizes, each with padding after its patches."""
    lengths = tuple(n * rows.unit for n in rows.tokens.counts)
    if min(lengths) == rows.width:
        return rows
    ends = torch.tensor(lengths).to(rows.row.device, non_blocking=True)
    return replace(rows, lengths=lengths, valid=torch.arange(rows.width, device=ends.device) < ends[:, None])


def starts(spans: Spans, device: torch.device) -> Tensor:
    """``(S,)`` first row of each span among the rows of all spans in raster order."""
    return torch.tensor(offsets(spans.sizes)[:-1], dtype=torch.long).to(device, non_blocking=True)
