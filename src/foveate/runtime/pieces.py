"""Features as stock code gives them: one tensor of all images, or a piece for each, with newlines or without, at full length or
only what is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.ops.segments import offsets
from foveate.runtime.context import Record
from foveate.runtime.layout import frames, tokens_of
from foveate.runtime.memory import Known
from foveate.tokens import Tokens


def starts_of(pieces: Sequence[Tensor]) -> list[int]:
    """Return the number of the first feature of each piece, and of all of them."""
    return offsets([len(piece) for piece in pieces])


def pieces_of(features: Any) -> list[Tensor]:
    """Features as stock code gives them, one tensor or several, in pieces ``(n, C)``."""
    if isinstance(features, Tensor):
        return [features] if features.dim() < 3 else list(features.flatten(1, -2))
    return [piece.flatten(0, -2) for piece in features]


def in_form_of(features: Any, pieces: Sequence[Tensor]) -> Any:
    """New pieces in the form that stock code gave; a list, where they do not fit into one tensor any more."""
    if not isinstance(features, Tensor):
        old = [piece.shape for piece in features]
        return type(features)(
            new.view(shape) if len(new) == shape[:-1].numel() else new for new, shape in zip(pieces, old)
        )
    if features.dim() < 3:
        return pieces[0]
    if len({len(piece) for piece in pieces}) > 1:
        return list(pieces)
    new = torch.stack(list(pieces))
    return new.view(features.shape) if new.numel() == features.numel() else new


def with_newlines(pieces: Sequence[Tensor], record: Record) -> list[Tensor]:
    """The same pieces with a row for every feature; newlines that stock code adds later are left open."""
    starts = record.order.starts
    if sum(map(len, pieces)) == starts[-1]:
        return [piece.detach() for piece in pieces]
    lengths = [b - a for a, b in zip(starts, starts[1:])]
    return [
        torch.cat([piece.detach(), piece.new_full((n - len(piece), piece.shape[-1]), torch.nan)])
        for piece, n in zip(pieces, lengths)
    ]


def images_in(record: Record) -> list[Tensor]:
    """Return the features of each image or video."""
    starts = record.order.starts
    lengths = [b - a for a, b in zip(starts, starts[1:])]
    if [len(part) for part in record.parts] == lengths:
        return list(record.parts)
    return list(record.features.split(lengths))


def left_in(record: Record) -> Tokens:
    """Return the visual tokens that an encoding has left."""
    stays = record.order.patch >= 0
    if record.hole is not None:
        stays &= ~record.hole.cpu()
    kept = record.order.patch[stays].sort().values
    full = tokens_of(frames(record.order.grid), "cpu" if record.hole is None else record.hole.device)
    full = full if record.sizes is None else replace(full, sizes=record.sizes)
    full = full if record.coords is None else replace(full, coords=record.coords)
    counts = torch.bincount(full.segment.cpu()[kept], minlength=len(full.counts))
    return full.select(kept.to(full.index.device), tuple(counts.tolist()))


def without_holes(rows: Tensor, hole: Tensor | None) -> Tensor:
    """Return the features that are left."""
    return rows if hole is None else rows[~hole.to(rows.device)]


def completed(known: Known, rows: Tensor, start: int) -> Tensor:
    """Return a piece of features at full length; ``start``: its first row among all those in which images are ``known``."""
    here = [(encoding, where) for encoding, where in known if start <= where.start < start + len(rows)]
    complete = [encoding.complete(rows[where.start - start : where.stop - start]) for encoding, where in here]
    return torch.cat(complete) if complete else rows


def with_deepstack(output: Any, change: Callable[[Tensor, int], Tensor]) -> Any:
    """The same output, ``change(rows, number of the first)`` done to the features that the decoder's layers add."""
    layers = getattr(output, "deepstack_features", None)
    if layers is not None:
        output.deepstack_features = [_changed(layer, change) for layer in layers]
    return output


def _changed(layer: Any, change: Callable[[Tensor, int], Tensor]) -> Any:
    if isinstance(layer, Tensor):
        return change(layer, 0)
    return type(layer)(change(piece, a) for piece, a in zip(layer, starts_of(layer)))
