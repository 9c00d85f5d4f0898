"""Layouts: the map from the tokens present now to the full sequence. Immutable; reducing one gives a new one.

`Rows` is a padded batch ``(B, P, ...)`` in which some positions are visual (the language model, CLIP-like towers, and towers
whose images stand one after another in a single row).
`Packed` is one sequence ``(rows, ...)`` of nothing but visual tokens (Qwen-like towers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.answers import Sight
from foveate.ops.segments import offsets, segment_ids, within
from foveate.tokens import Reduction, Spans, Tokens

HOLE = float("nan")  # what a row is filled with whose token has left


def tokens_of(spans: Spans, device: torch.device | str = "cpu") -> Tokens:
    """The complete tokens of ``spans`` in raster order, without hidden states."""
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
    """Tokens present in a padded batch.

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
        """The visual rows of ``x (B, P, ...)``, packed: ``(N * unit, ...)``."""
        return x.flatten(0, 1)[self.flat(x.device)]

    def attended(self, x: Tensor) -> Tensor:
        """The visual rows of ``x (B, P', ...)``, packed: ``(N * unit, ...)``. Rows that have left since may stand before
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

    def only(self, keep: Tensor, tokens: Tokens) -> Rows:
        """The same places, of the tokens ``keep (K,)`` alone, which are now ``tokens``."""
        row, slot = (each.view(-1, self.unit)[keep].flatten() for each in (self.row, self.slot))
        return replace(self, tokens=tokens, row=row, slot=slot)

    def flat(self, device: torch.device) -> Tensor:
        """``(N * unit,)`` places of the visual rows in ``x.flatten(0, 1)``."""
        return (self.row * self.width + self.slot).to(device)

    def reduce(self, reduction: Reduction) -> tuple[Rows, Tensor | None]:
        """The layout of the survivors, and ``take (B, P')``: the slot each of its positions had (None: all stay)."""
        tokens = replace(reduction.survivors(self.tokens), hidden=self.tokens.hidden)
        if len(tokens) == len(self.tokens) and (self.place is None or self.index is not None):
            return replace(self, tokens=tokens), None  # nothing goes, and no token has moved to another one's position
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
        return none if self.tokens.marks is None else none.index_put((self.row, self.slot), self.tokens.marks)

    def scatter(self, x: Tensor, length: int, fill: float = 0.0) -> Tensor:
        """``x (B, P, C)``, or the last of its rows, back at its places among the last ``length`` rows, ``fill`` elsewhere."""
        if self.index is None:
            return x
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
        out = out.index_copy(0, place.flatten(), x.flatten(0, 1))
        return out[:-1].view(x.shape[0], length, -1)

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
        take: ``(B, P')``.
    """
    take = take.to(x.device)
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


@dataclass(frozen=True, eq=False)
class Packed:
    """Tokens present in one packed sequence of units.

    Attributes:
        unit: rows per token (patches that the merger joins; 1 at patch level).
        full: tokens of the full sequence.
        tokens: those present now, in sequence order.
        index: ``(N,)`` place of each in the full sequence, ascending, or None: nothing was removed.
    """

    unit: int
    full: int
    tokens: Tokens
    index: Tensor | None = None

    def attended(self, x: Tensor) -> Tensor:
        """Rows ``(1, N * unit, ...)`` as an attention has them, as ``(N * unit, ...)``."""
        return x[0]

    def pick(self, x: Tensor) -> Tensor:
        """Rows ``(N * unit, C)`` as tokens ``(N, unit * C)``."""
        return x.reshape(len(self.tokens), self.unit * x.shape[-1])

    def put(self, x: Tensor, values: Tensor) -> Tensor:
        """Tokens ``(N', unit * C)`` as rows ``(N' * unit, C)``, in the dtype of ``x``."""
        return values.to(x.dtype).reshape(-1, x.shape[-1])

    def reduce(self, reduction: Reduction) -> Packed:
        """The layout of the survivors."""
        tokens = replace(reduction.survivors(self.tokens), hidden=self.tokens.hidden)
        index = reduction.keep if self.index is None else self.index[reduction.keep]
        return replace(self, tokens=tokens, index=index)

    def rows(self) -> Tensor:
        """``(N * unit,)`` places of the rows present in the full sequence of rows."""
        assert self.index is not None
        return self.rows_of(self.index)

    def rows_of(self, index: Tensor) -> Tensor:
        """``(K * unit,)`` rows of the tokens ``index (K,)``."""
        return (index[:, None] * self.unit + torch.arange(self.unit, device=index.device)).flatten()

    def seqlens(self, cu_seqlens: Tensor) -> Tensor:
        """Cumulative lengths of the attention segments that still have tokens."""
        assert self.index is not None
        before = torch.searchsorted(self.index, cu_seqlens.long() // self.unit) * self.unit
        distinct: Tensor = torch.unique_consecutive(before)
        return distinct.to(cu_seqlens.dtype)

    def scatter(self, x: Tensor, fill: float) -> Tensor:
        """One row per token ``(N, C)`` back at its place among ``full`` rows, ``fill`` elsewhere."""
        if self.index is None:
            return x
        return x.new_full((self.full, x.shape[-1]), fill).index_copy(0, self.index.to(x.device), x)

    def patches(self) -> Packed:
        """The same tokens one by one, every patch a token (for parking below the level of the merger)."""
        if self.unit == 1:
            return self
        tokens = patches_of(self.tokens, self.unit)
        return Packed(1, self.full * self.unit, tokens, None if self.index is None else self.rows())


def displacement(t: Tokens) -> Tensor:
    """``(N, 2)`` how far each token's coordinates are from its own place, along y and x."""
    width = torch.tensor([w for _, w in t.spans.shape]).to(t.index.device, non_blocking=True)[t.segment]
    return t.coords[:, 1:] - torch.stack([t.index // width, t.index % width], dim=-1)


def patches_of(tokens: Tokens, unit: int) -> Tokens:
    """The patches of units of ``unit``, in the order of the units, those of one in raster order."""
    t, spans, m = tokens, tokens.spans, math.isqrt(unit)
    inner = torch.arange(unit, device=t.index.device)
    dy, dx = inner // m, inner % m
    width = torch.tensor([w for _, w in spans.shape], device=t.index.device)[t.segment][:, None]
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
    ends = torch.tensor(lengths, device=rows.row.device)
    return replace(rows, lengths=lengths, valid=torch.arange(rows.width, device=ends.device) < ends[:, None])


def starts(spans: Spans, device: torch.device) -> Tensor:
    """``(S,)`` first row of each span among the rows of all spans in raster order."""
    return torch.tensor(offsets(spans.sizes)[:-1], dtype=torch.long, device=device)
