"""All pairs of tokens of a segment, a part at a time, so that memory grows with the tokens and not with their square."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from foveate.ops.segments import alike, gram, gram_pairs, padded_index, padded_pairs, rows_of, to_padded

#: Pairs that are held at once: where all of a call are no more (64 MB), they are made once for all questions.
HELD = 1 << 24

#: What makes of the products ``(S, r, n)`` of rows with columns what is asked about; the other two are as in a `Question`.
Finish = Callable[[Tensor, Tensor, Tensor], Tensor]
#: What is asked of ``r`` rows of ``S`` segments of like lengths: ``value (S, r, n)`` of each row with each token of its
#: segment, ``row (S, r)`` and ``column (S, n)`` which tokens these are, packed indices, ``N`` where there is none. The
#: answers are ``(S, r)``; others are asked about the same ``value``, so nobody writes into it.
Question = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


class Pairs:
    """The products of all pairs of tokens of a segment, or what is made of them.

    They are made for a question and forgotten, unless there are few (`HELD`). A large segment among many small ones is no
    reason to pad these: segments of like lengths are asked together.

    Args:
        x: ``(N, C)``; what is found has no gradient.
        counts: tokens per segment, sums to ``N``.
        finish: what makes of products what is asked about; None: products are.

    Attributes:
        n: N.
        device: where they are.
    """

    def __init__(self, x: Tensor, counts: Sequence[int], finish: Finish | None = None) -> None:
        self._x, self._counts, self._finish = x.detach(), counts, finish
        self.n, self.device = len(x), x.device
        self._held: dict[int, Tensor] | None = {} if _are_held(counts) else None

    @torch.no_grad()
    def ask(self, question: Question) -> tuple[Tensor, ...]:
        """Put a question about every token: each of its answers, packed, ``(N,)``."""
        tokens, found = [], []
        for part, members in enumerate(alike(self._counts)):
            few = [self._counts[s] for s in members]
            if not sum(few):
                continue
            rows = rows_of(members, self._counts, self.device)
            answers = [question(*block) for block in self._blocks(part, rows, few)]
            places = padded_index(few, self.device)
            found.append([torch.cat(each, dim=1).flatten()[places] for each in zip(*answers)])
            tokens.append(rows)
        order = torch.cat(tokens)
        joined = (torch.cat(each) for each in zip(*found))
        return tuple(torch.empty_like(each).index_copy(0, order, each) for each in joined)

    def _blocks(self, part: int, rows: Tensor, counts: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Values, rows and columns of some segments of like lengths, ``rows`` of all tokens. The first row of each of these
        blocks is an even one of its segment."""
        column = to_padded(rows, counts, self.n)
        if self._held is not None and part in self._held:
            yield self._held[part], column, column
            return
        x = self._x if len(rows) == self.n else self._x[rows]
        x = (
            x.view(*column.shape, -1) if len(rows) == column.numel() else to_padded(x, counts)
        )  # a copy of all takes long
        width = column.shape[1]
        step = (
            width if self._held is not None else max(2, HELD // 8 // column.numel() * 2)
        )  # questions need memory, too
        for start in range(0, width, step):
            at = slice(start, start + step)
            value = x[:, at] @ x.transpose(1, 2) if self._held is None else gram(x)
            value = value if self._finish is None else self._finish(value, column[:, at], column)
            if self._held is not None:
                self._held[part] = value
            yield value, column[:, at], column


def products(counts: Sequence[int], width: int, questions: int) -> int:
    """Floating-point operations of the matrix products of `Pairs` for so many questions (2 per multiply-add)."""
    return (
        2 * width * (gram_pairs(counts) * min(questions, 1) if _are_held(counts) else padded_pairs(counts) * questions)
    )


def cosines(x: Tensor, counts: Sequence[int]) -> Pairs:
    """Cosines of each token with the others of its segment, in fp32; -inf with itself, and where there is none."""

    def others(product: Tensor, row: Tensor, column: Tensor) -> Tensor:
        product.masked_fill_(row[:, :, None] == column[:, None], -torch.inf)
        return product.masked_fill_((column == len(x))[:, None], -torch.inf)

    return Pairs(torch.nn.functional.normalize(x.detach().float(), dim=-1), counts, others)


def largest(value: Tensor, k: int) -> Tensor:
    """Return the ``k`` largest values of each row, ``(S, r, k)`` of ``(S, r, n)``, or all there are; as a part of a `Question`.

    They are in those parts of a long row that have the largest maxima, and these are much faster to find.
    """
    n, width = value.shape[-1], 64
    if n < 4 * k * width:
        return value.topk(min(k, n), dim=-1).values
    parts = value[..., : n // width * width].unflatten(-1, (-1, width))
    best = parts.amax(-1).topk(k, dim=-1).indices
    few = parts.gather(2, best[..., None].expand(-1, -1, -1, width)).flatten(2)
    return torch.cat([few, value[..., n // width * width :]], dim=-1).topk(k, dim=-1).values


def best_column(value: Tensor, allowed: Tensor, column: Tensor, *, largest: bool = True) -> tuple[Tensor, Tensor]:
    """Find the best of the columns that are allowed, the first of several, as a part of a `Question`.

    Args:
        value: ``(S, r, n)``.
        allowed: bool, of that shape or one that broadcasts to it.
        column: ``(S, n)`` packed indices.

    Returns:
        ``(S, r)`` its value, infinite on the wrong side where none is allowed; and its packed index.
    """
    worst = -torch.inf if largest else torch.inf
    masked = value.masked_fill(~allowed, worst)
    found, at = masked.max(-1) if largest else masked.min(-1)
    return found, column.gather(1, at)


def _are_held(counts: Sequence[int]) -> bool:
    return padded_pairs(counts) <= HELD
