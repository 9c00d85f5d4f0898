"""Subsets that cover: each pick is the token that brings most to those that are least represented by the picks so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate.ops.segments import alike, choose_alike, gram, gram_pairs, offsets, padded_index, rows_of, to_padded

_BITS = 48  # of a coverage of 1
_CELLS = 1 << 25  # coverages held at once (128 MB); where all of them are more, they are computed for each pick


def covering(
    features: Tensor,
    counts: Sequence[int],
    k: Sequence[int],
    words: Tensor,
    place: Tensor,
    *,
    sharp: tuple[float, float],
    weight: float,
    cells: int = _CELLS,
) -> Tensor:
    """Greedily choose the tokens of each segment that cover its words and, ``weight`` times as much, all of its tokens.

    How much a token covers a word is the softmax over the tokens of their cosines divided by ``sharp[0]``, and how much it
    covers a token the same divided by ``sharp[1]``. A set covers what the best of it does; words count as one in the mean, and
    so do tokens. Ties go to the earlier token.

    Args:
        features: ``(N, C)``.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.
        words: ``(M, C)``.
        place: ``(S, R)`` int64 which words each segment has, -1 where it has fewer.
        cells: coverages held at once; at least those of one row.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    chosen = [torch.empty(0, dtype=torch.long, device=features.device)]
    x, said = normalize(features.detach().float(), dim=-1), normalize(words.detach().float(), dim=-1)
    said = torch.nn.functional.pad(said, (0, 0, 0, 1))  # the last one: none
    for members in alike(counts):
        few, own = [counts[s] for s in members], [k[s] for s in members]
        if sum(own):
            rows = rows_of(members, counts, x.device)
            which = place[torch.tensor(members).to(place.device, non_blocking=True)]
            targets = _Targets(
                x[rows], few, said[torch.where(which < 0, len(said) - 1, which)], which >= 0, sharp, weight, cells
            )
            chosen.append(rows[_pick(targets.blocks, targets.exists, few, own)])
    return torch.cat(chosen).sort().values


def covering_flops(counts: Sequence[int], k: Sequence[int], n_words: int, width: int, cells: int = _CELLS) -> int:
    """Floating-point operations of the matrix products in `covering`, where a segment has up to ``n_words``."""
    total = 0
    for members in alike(counts):
        longest, picks = max((counts[s] for s in members), default=0), max((k[s] for s in members), default=0)
        pairs = len(members) * (longest + n_words) * longest
        total += pairs * width * (min(picks, 1) if pairs <= cells else picks)
    return 2 * total


class _Targets:
    """What is to be covered in segments of like lengths: words first, then tokens, ``T`` rows of each segment."""

    def __init__(
        self,
        x: Tensor,
        counts: list[int],
        words: Tensor,
        there: Tensor,
        sharp: tuple[float, float],
        weight: float,
        cells: int,
    ) -> None:
        self.x = to_padded(x, counts)  # (S, n, C)
        n = torch.tensor(counts).to(x.device, non_blocking=True)[:, None]
        self.exists = torch.arange(self.x.shape[1], device=x.device) < n
        self.rows = torch.cat([words, self.x], 1)  # (S, T, C)
        of_words = there / there.sum(1, keepdim=True).clamp(min=1)
        self.weight = torch.cat([of_words, weight * self.exists / n.clamp(min=1)], 1)
        self.scale = x.new_tensor(sharp).repeat_interleave(
            torch.tensor([words.shape[1], self.x.shape[1]]).to(x.device, non_blocking=True)
        )
        width = self.rows.shape[1]
        pairs = len(counts) * width * self.x.shape[1]
        self.step = width if pairs <= cells else max(1, cells // (len(counts) * self.x.shape[1]))
        self.held: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """How much each token covers some of the rows, ``(S, t, n)``, times the weight of these rows."""
        for start in range(0, self.rows.shape[1], self.step):
            at = slice(start, start + self.step)
            if self.held is not None:
                yield at, self.held
                continue
            alike_ = self.rows[:, at] @ self.x.transpose(1, 2) / self.scale[at, None]
            covered = alike_.masked_fill(~self.exists[:, None], -torch.inf).softmax(-1) * self.weight[:, at, None]
            if self.step >= self.rows.shape[1]:
                self.held = covered
            yield at, covered


def _pick(
    blocks: Callable[[], Iterable[tuple[slice, Tensor]]], free: Tensor, counts: list[int], k: list[int]
) -> Tensor:
    """Return the tokens that bring most, one after another, segment after segment.

    What each token would bring is kept from pick to pick: a pick lessens it by what it has brought to the same rows.

    Args:
        blocks: give for some of the rows of a segment how much each token covers them, ``(S, t, n)``, all together no more
            than a few times 1.
        free: ``(S, n)`` bool, where there is a token.
    """
    device, segment, picks = free.device, torch.arange(len(counts), device=free.device), list[Tensor]()
    gain = sum(_counted(covered).sum(1) for _, covered in blocks())
    so_far: dict[int, Tensor] = {}  # how far the rows of each block are covered
    while True:
        pick = torch.where(free, gain, -1).argmax(1)
        picks.append(pick)
        if len(picks) == max(k):
            break
        free = free.scatter(1, pick[:, None], False)
        for at, covered in blocks():
            new = covered[segment, :, pick]
            old = so_far.get(at.start, torch.zeros_like(new))
            gain = gain - _brought(covered, old, new)
            so_far[at.start] = torch.maximum(old, new)
    start = torch.tensor(offsets(counts)[:-1]).to(device, non_blocking=True)[:, None]
    return (torch.stack(picks, 1) + start).flatten()[padded_index(k, device)]


def _brought(covered: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """What each token cannot bring any more, ``(S, n)``, once rows that it ``covered (S, t, n)`` have ``new``, not ``old``.

    Few rows are covered better than by all picks before. On a CPU, where finding them keeps nobody waiting, no others are read.
    """
    if not covered.is_cpu:
        old, new = _counted(old)[:, :, None], _counted(torch.maximum(old, new))[:, :, None]
        return (_counted(covered).clamp(old, new) - old).sum(1)
    segment, row = (new > old).nonzero(as_tuple=True)
    old, new = (_counted(each[segment, row])[:, None] for each in (old, new))
    brought = _counted(covered[segment, row]).clamp_(old, new).sub_(old)
    return brought.new_zeros(len(covered), covered.shape[2]).index_add_(0, segment, brought)


def _counted(covered: Tensor) -> Tensor:
    """Coverage as whole numbers: what is added to a sum and taken from it again leaves nothing, and ties are ties."""
    return (covered * 2.0**_BITS).long()


def represented(
    features: Tensor, weight: Tensor, counts: Sequence[int], k: Sequence[int], *, shifted: bool = False
) -> Tensor:
    """Greedily choose the tokens of each segment that represent all of its tokens best (facility location).

    A token is represented as well as the largest cosine that it has with one that is chosen, 0 or more; what is maximised is
    the sum of that over the segment, weighted. Ties go to the earlier token.

    Args:
        features: ``(N, C)``.
        weight: ``(N,)``, 0 or more.
        counts: tokens per segment, sums to ``N``.
        k: survivors per segment, ``0 <= k[s] <= counts[s]``.
        shifted: ``(1 + cosine) / 2`` counts in place of a cosine that is 0 or more.

    Returns:
        ``(sum(k),)`` int64, ascending.
    """
    unit = normalize(features.detach().float(), dim=-1)
    return choose_alike(
        lambda at: _represented(unit[at.rows], weight[at.rows].float(), at.counts, at.k, shifted),
        counts,
        k,
        features.device,
    )


def represented_flops(counts: Sequence[int], k: Sequence[int], width: int) -> int:
    """Floating-point operations of the matrix products in `represented` (2 per multiply-add)."""
    total = 0
    for members in alike(counts):
        total += gram_pairs([counts[s] for s in members]) if any(k[s] for s in members) else 0
    return 2 * total * width


def _represented(unit: Tensor, weight: Tensor, counts: list[int], k: list[int], shifted: bool) -> Tensor:
    """Find what `represented` says, in segments of like lengths."""
    weight = to_padded(weight, counts)
    share = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    cosine = gram(to_padded(unit, counts))
    covered = (cosine.add_(1).div_(2) if shifted else cosine).clamp_(min=0).mul_(share[:, :, None])
    free = to_padded(torch.ones(len(unit), dtype=torch.bool, device=unit.device), counts, False)
    return _pick(lambda: [(slice(0, None), covered)], free, counts, k)
