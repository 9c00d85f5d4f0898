"""What is read from one attention call, and what of it belongs to the tokens that are still present."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.runtime.layout import take_rows
from foveate.runtime.signals.pattern import Pattern, attention, received

if TYPE_CHECKING:
    from foveate.runtime.members import Members
    from foveate.runtime.parking import Attending
    from foveate.runtime.queries import Queries


@dataclass
class Seen:
    """What one attention module computed in one forward; a packed tower calls the kernel once per segment.

    Attributes:
        states: ``queries``, ``keys`` or ``values`` -> ``(B, H, K, d)`` each call.
        rows: name -> ``(B, H or 1, R, K)`` attention of chosen queries, each call.
        received: ``(B, K)`` each call, mean over heads and queries.
        flops: spent on rows and column sums.
    """

    states: dict[str, list[Tensor]] = field(default_factory=dict)
    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    received: list[Tensor] = field(default_factory=list)
    flops: int = 0


@dataclass
class Reading:
    """What to read from the next attention call.

    Attributes:
        states: which of ``queries``, ``keys`` and ``values`` are kept.
        queries: name -> ``(B, R)`` slots of the queries whose rows are wanted.
        apart: names of those rows whose heads are kept apart; of others the mean is kept.
        received: whether the attention is wanted that each key receives of all queries.
        valid: ``(B, Q)`` bool, queries that are not padding of ours, or None.
        queries_of: ``(B, S)`` queries of each of the samples that are packed into a row, or None: it is one.
        pattern: ``(B, 1, Q, K)`` bool, what each query sees, where the kernel is told in another way than by a mask; or None.
        parts: queries and keys of each image, where several that do not see each other share a single row.
        key_bias: ``(B, K)`` or packed ``(K,)`` added to the logits of each key, or None.
        sight: ``(B, K)`` or packed ``(K,)`` the group of each row, -1 for none, and ``(G + 1, G + 1)`` bool, which groups see
            which; or None: all see all.
        drop_positions: hide ``position_ids`` from the kernel (gaps look like packed sequences to flash attention).
        attending: the rows that have queries among all rows of this attention, when some have none (they are parked, or
            skip it); or None.
        gradients: what is read carries gradients, where the model makes them.
        width: tokens per row that the layer brought; they are the last keys.
        take: what of those is still there, when a site before this one has reduced them: ``(B, P)`` slots, in a packed
            tower ``(rows,)``. None: all.
        steps: with ``positions="virtual"`` in place of ``take``: what the keys, and then the tokens, have become part of.
        stands: no row is left, and those of the attention stand in for some; nothing of them is read.
        ahead: the layer has not run yet: its kernel is spared.
        before: ``(B, H, K', d)`` keys of earlier forwards, where the cache does not join them to those of this one.
    """

    states: set[str] = field(default_factory=set)
    queries: dict[str, Tensor] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)
    received: bool = False
    valid: Tensor | None = None
    queries_of: Tensor | None = None
    pattern: Tensor | None = None
    parts: tuple[tuple[int, int], ...] = ()
    key_bias: Tensor | None = None
    sight: tuple[Tensor, Tensor] | None = None
    drop_positions: bool = False
    attending: Attending | Queries | None = None
    gradients: bool = False
    seen: Seen = field(default_factory=Seen)
    width: int = 0
    take: Tensor | None = None
    steps: tuple[Members, ...] = ()
    stands: bool = False
    ahead: bool = False
    before: Tensor | None = None
    offset: int = 0  # keys already handled, when the kernel is called segment by segment

    # -- before it runs ------------------------------------------------------------------------------------------------

    def next_part(self, keys: int) -> slice:
        """Return which rows the coming call of the kernel is about, where it is called segment by segment."""
        known = self.sight[0] if self.key_bias is None and self.sight is not None else self.key_bias
        if known is None or known.shape[-1] <= keys:
            return slice(None)
        start, self.offset = self.offset, self.offset + keys
        return slice(start, self.offset)

    # -- while the attention runs -----------------------------------------------------------------------------------

    def note(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep what is wanted of the arguments of a kernel."""
        for name, state in (("queries", query), ("keys", key), ("values", value)):
            if name in self.states:
                self.seen.states.setdefault(name, []).append(state)

    def read(self, query: Tensor, key: Tensor, mask: object, how: Pattern) -> None:
        """Compute the rows and the column sum that are wanted of an attention ``(B, H, Q, d)`` by ``(B, G, K, d)``."""
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            self._read(query, key, mask, how)

    def _read(self, query: Tensor, key: Tensor, mask: object, how: Pattern) -> None:
        for name, slots in self.queries.items():
            rows = attention(query, key, mask, how, slots)
            rows = rows if name in self.apart else rows.mean(1, keepdim=True)
            self.seen.rows.setdefault(name, []).append(rows)
            self.seen.flops += 2 * query.shape[1] * slots.numel() * key.shape[2] * key.shape[3]
        if not self.received:
            return
        got = received(query, key, mask, how, self.valid)
        if self.parts and mask is not None:  # a key is seen by the queries of its own image only
            queries, keys = (torch.tensor(each) for each in zip(*self.parts))
            share = query.shape[2] / queries.clamp(min=1).repeat_interleave(keys)
            got = got * share.to(got.device, non_blocking=True)
        self.seen.received.append(got)
        self.seen.flops += 2 * query.shape[:3].numel() * key.shape[2] * key.shape[3]

    # -- afterwards -------------------------------------------------------------------------------------------------

    @property
    def sees_parked(self) -> bool:
        """Whether tokens that are set aside were among the keys."""
        return self.attending is not None and self.attending.alone

    @property
    def present(self) -> int:
        """Tokens per row (of a packed tower: rows) that are still covered."""
        if self.steps:
            return self.steps[-1].inner.width
        return self.width if self.take is None else self.take.shape[-1]

    def narrow(self, take: Tensor) -> None:
        """Follow a reduction after the attention was read."""
        if self.take is None:
            self.take = take
        else:
            self.take = self.take.gather(1, take) if take.dim() == 2 else self.take[take]

    def join(self, step: Members) -> None:
        """Follow merged tokens that stand for their members."""
        self.steps = (*self.steps, step)

    def now(self, x: Tensor, mean: bool = False) -> Tensor:
        """Those rows of ``x (B, K, ...)`` that are still covered; ``K`` may begin with keys of the past.

        Of a token that stands for its members it is their sum, or their ``mean``.
        """
        if self.steps:
            total = x[:, -self.steps[0].outer.width :]
            count = torch.ones_like(total[:, :, None].flatten(2)[:, :, :1])
            for step in self.steps:
                total, count = step.total(total), step.total(count)
            count = count.clamp(min=1).view(*count.shape[:2], *(1,) * (total.dim() - 2))
            return (total / count if mean else total).to(x.dtype)
        x = x[:, -self.width :]
        if self.take is None:
            return x
        return take_rows(x, self.take) if self.take.dim() == 2 else x[:, self.take]

    def state(self, name: str) -> Tensor:
        """``(B, P, H, d)`` queries, keys or values of the rows that are still covered."""
        return self.now(torch.cat(self.seen.states[name], dim=2).transpose(1, 2), mean=True)

    def first(self, name: str) -> Tensor:
        """``(B, H, d)`` queries, keys or values of the first row of each image (its CLS token), whatever has left since."""
        return torch.cat(self.seen.states[name], dim=2)[:, :, -self.width]

    def paid(self, name: str) -> Tensor:
        """``(B, P, R, H or 1)`` attention of the queries ``name`` to the rows that are still covered."""
        return self.now(torch.cat(self.seen.rows[name]).permute(0, 3, 2, 1))

    def got(self) -> Tensor:
        """``(B, P)`` attention received of all queries."""
        return self.now(torch.cat(self.seen.received, dim=1))  # one call, or one part of a single row after another

    def take_flops(self) -> int:
        """Return what reading has cost since the last question."""
        flops, self.seen.flops = self.seen.flops, 0
        return flops
