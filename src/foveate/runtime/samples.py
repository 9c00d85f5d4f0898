"""Which tokens of a batch row belong together: what is padding, and where samples that are packed into one row begin.

Methods that read the text ask for the last tokens of a sample. Padding may be said by a mask of any shape, and a row may hold
several samples (padding-free training), kept apart by positions that start again, by lengths, numbers, or the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InputError
from foveate.ops.segments import offsets
from foveate.tokens import Spans, Tokens

_LENGTHS = ("cu_seq_lens_q", "cu_seqlens_q", "cu_seqlens")  # cumulative, over all rows
#: arguments that number the samples of each row, ``(B, L)``
NUMBERS = ("seq_idx", "sequence_ids")


def present_in(mask: Any, batch: int, length: int, past: int) -> Tensor | None:
    """``(B, L)`` bool, False for padding; None: the mask says nothing of it.

    Args:
        mask: None; ``(B, T)``; ``(B or 1, H, Q, K)`` bool or additive; a flex ``BlockMask``; a dict of these by kind of layer.
        batch, length, past: rows, tokens of this forward, and tokens before them.

    Raises:
        InputError: the mask is none of these.
    """
    mask = _widest(mask)
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask[:, -length:].bool()
    return _sees(mask, batch, length, past, 0)  # padding does not even see itself


def begins_in(kwargs: Mapping[str, Any], mask: Any, batch: int, length: int, past: int) -> Tensor | None:
    """``(B, L)`` bool, True where a sample begins inside a row; None: nothing says that one does.

    Args:
        kwargs: of the language model: position ids, lengths, sample numbers.
        mask, batch, length, past: as for `present_in`.
    """
    mask = _widest(mask)
    found = [_of_lengths(kwargs, batch, length), _of_numbers(kwargs), _of_positions(kwargs, batch)]
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        found.append(~_sees(mask, batch, length, past, 1) & _sees(mask, batch, length, past, 0))
    known = [each for each in found if each is not None and each.shape == (batch, length)]
    return torch.stack([each.to(known[0].device) for each in known]).any(0) if known else None


def _widest(mask: Any) -> Any:
    """Return the mask that hides least, of several by kind of layer."""
    return mask.get("full_attention", next(iter(mask.values()), None)) if isinstance(mask, dict) else mask


def _sees(mask: Any, batch: int, length: int, past: int, back: int) -> Tensor:
    """``(B, L)`` bool: whether each token sees the one ``back`` tokens before it, the first one itself."""
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else None
    query = torch.arange(length)
    key = (query + past - back).clamp(min=0)
    if shape is not None and len(shape) == 4 and shape[2] == length and shape[3] >= past + length:
        seen = mask[:, 0, query.to(mask.device), key.to(mask.device)]
        allowed: Tensor = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
        return allowed.expand(batch, -1)
    if hasattr(mask, "mask_mod"):
        device = mask.kv_num_blocks.device
        of = torch.arange(batch, device=device)[:, None]
        found: Tensor = mask.mask_mod(of, of.new_zeros(()), query.to(device), key.to(device))
        return found.expand(batch, length)
    raise InputError(
        f"an attention mask {'of shape ' + str(shape) if shape else type(mask).__name__} does not say which of {length} tokens "
        "are padding: give one of shape (batch, length) or (batch, 1, queries, keys)"
    )


def _of_lengths(kwargs: Mapping[str, Any], batch: int, length: int) -> Tensor | None:
    ends = next((kwargs[name] for name in _LENGTHS if isinstance(kwargs.get(name), Tensor)), None)
    if ends is None:
        return None
    flat = torch.zeros(batch * length + 1, dtype=torch.bool, device=ends.device).index_fill(0, ends.long(), True)
    return flat[:-1].view(batch, length)


def _of_numbers(kwargs: Mapping[str, Any]) -> Tensor | None:
    numbers = next((kwargs[name] for name in NUMBERS if isinstance(kwargs.get(name), Tensor)), None)
    if numbers is None or numbers.dim() != 2:
        return None
    return torch.nn.functional.pad(numbers[:, 1:] != numbers[:, :-1], (1, 0))


def _of_positions(kwargs: Mapping[str, Any], batch: int) -> Tensor | None:
    """Positions of text go on inside a sample; on several axes they may go back (a video's sound), but not to the start."""
    ids = kwargs.get("position_ids")
    if not isinstance(ids, Tensor) or ids.dim() not in (2, 3):
        return None
    if ids.dim() == 3 and ids.shape[0] in (1, 4):  # the first of four axes counts tokens
        ids = ids[0]
    back = ids[:, 1:] <= ids[:, :-1] if ids.dim() == 2 else (ids[:, :, 1:] == 0).all(0) & (ids[0, :, :-1] > 0)
    return torch.nn.functional.pad(back, (1, 0)).expand(batch, -1)


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a prompt, ``S`` in a row at most.

    Attributes:
        number: ``(B, L)`` on the host, which sample of its row each token belongs to.
        last: ``(B, S)`` place of the last token of each that is no padding; -1: there is none.
        question: ``(B, S, R)`` places of the tokens after the last visual one of each, -1 where there are less.
        present: ``(B, L)`` on the host, False for padding.
    """

    number: Tensor
    last: Tensor
    question: Tensor
    present: Tensor

    @property
    def several(self) -> bool:
        """Whether a row holds more than one."""
        return self.last.shape[1] > 1

    def count(self, index: Tensor | None, which: Tensor) -> Tensor:
        """``(B, S)``: how many of the tokens ``which (B, P)`` each sample has, those present being ``index (B, P)`` of all."""
        number = self.number.to(which.device)
        number = number if index is None else number.gather(1, index)
        return which.long().new_zeros(self.last.shape).scatter_add_(1, number, which.long())

    def pattern(self, index: Tensor | None, device: torch.device) -> Tensor:
        """``(B, 1, P, P)`` bool: tokens present, ``index (B, P)`` of all, see those of their own sample up to themselves."""
        number = self.number.to(device)
        number = number if index is None else number.gather(1, index)
        return (number[:, None, :, None] == number[:, None, None, :]).tril()

    def lengths(self, tokens: Tokens) -> list[int]:
        """Tokens of each sample of the only row, now that ``tokens`` are left of its visual ones."""
        found = torch.bincount(self.number[self.present], minlength=self.last.shape[1]).tolist()
        for sample, size, count in zip(tokens.spans.sample, tokens.spans.sizes, tokens.counts):
            found[sample] -= size - count
        return [n for n in found if n]

    def spans(self, tokens: Tokens, slot: Tensor) -> Spans:
        """Return the spans of ``tokens``, which stand at ``slot (N,)`` of their rows, with the sample that each belongs to."""
        spans, n = tokens.spans, self.last.shape[1]
        start = offsets(tokens.counts)[:-1]
        own = [int(self.number[row, slot[a]]) if count else 0 for row, a, count in zip(spans.row, start, tokens.counts)]
        return replace(spans, sample=tuple(row * n + number for row, number in zip(spans.row, own)))


def samples_of(visual: Tensor, present: Tensor, begins: Tensor | None, device: torch.device) -> Samples:
    """Return the samples of a prompt, from masks ``(B, L)`` on the host; their last tokens on ``device``."""
    batch, length = visual.shape
    number = torch.zeros(batch, length, dtype=torch.long)
    if begins is not None:
        number = (begins & present & (present.cumsum(1) > 1)).cumsum(1)  # the first one begins with its row
    n, place = int(number.max()) + 1, torch.arange(length).expand(batch, -1)

    def latest(which: Tensor) -> Tensor:
        return torch.full((batch, n), -1).scatter_reduce(1, number, torch.where(which, place, -1), "amax")

    asks = present & (place > latest(visual).gather(1, number))
    of_sample = torch.nn.functional.one_hot(number, n).bool() & asks[..., None]  # (B, L, S)
    rank = of_sample.cumsum(1).sub(1)[of_sample]
    row, slot, sample = of_sample.nonzero().unbind(1)
    width = int(of_sample.sum(1).max())
    question = torch.full((batch, n, width), -1).index_put((row, sample, rank), slot)
    last, question = (x.to(device, non_blocking=True) for x in (latest(present), question))
    return Samples(number, last, question, present)
