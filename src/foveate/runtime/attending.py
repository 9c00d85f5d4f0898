"""Hooks of the blocks whose attention sees parked tokens (`parking.Attending`).

The norm before the attention is shown all rows, as the method says they are; the query projection and everything after the
kernel see the block's own rows only, and so does the residual stream.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedSiteError
from foveate.models.family import Tower
from foveate.runtime.blocks import seqlens_of
from foveate.runtime.context import Context
from foveate.runtime.hooks import Hooks, first_argument, replace_first
from foveate.runtime.memo import Memo
from foveate.runtime.parking import Attending, Lot
from foveate.runtime.protocol import Layout


class AttendHooks:
    """Puts them on a block; they do nothing while `Running.attending` is None."""

    def __init__(self, spec: Tower, context: Context) -> None:
        self.spec, self.context = spec, context

    def attach(self, hooks: Hooks, block: nn.Module) -> None:
        """Hook a block. Its kernel must be watched, too (`signals.watch`)."""
        attention = block.get_submodule(self.spec.attention)
        query = attention.get_submodule(self.spec.query)
        hooks.pre(block.get_submodule(self.spec.attention_norm), partial(self._lend, block))
        hooks.pre(query, self._before_query)
        hooks.post(query, self._after_query, first=True)
        hooks.pre(attention.get_submodule(self.spec.attention_end), self._own_rows)

    def of(self, memo: Memo, lot: Lot[Layout], rows: Tensor, kwargs: dict[str, Any]) -> Attending:
        """Return the attention of a block to ``rows``, whose arguments ``kwargs`` are those of all rows."""
        cu_seqlens, kept = seqlens_of(self.spec, kwargs), lot.kept
        if self.spec.layout == "row":
            rows, kept = rows[0], kept[0]
        if cu_seqlens is None:
            return Attending(rows, kept, None, (), self.spec.fused)

        def ends() -> tuple[Tensor, list[int]]:
            # Rows before each boundary: one that stands at a boundary belongs to the segment that begins there.
            own = torch.searchsorted(lot.kept.flatten(), cu_seqlens.to(lot.kept)).to(cu_seqlens)
            return own, own.tolist()

        return Attending(rows, kept, *memo.once("ends", (lot, cu_seqlens), ends), self.spec.fused)

    def _now(self) -> Attending | None:
        return self.context.tower.block.attending if self.context.tower else None

    def _lend(self, block: nn.Module, module: nn.Module, args: Any, kwargs: Any) -> Any:
        attending = self._now()
        if attending is None:
            return None
        own = first_argument(args, kwargs, "hidden_states")
        if getattr(block, "gradient_checkpointing", False) and block.training and own.requires_grad:
            raise UnsupportedSiteError(
                "attention to parked tokens cannot be replayed by gradient checkpointing: freeze the vision tower, or call "
                "gradient_checkpointing_disable() on it"
            )
        return replace_first(args, kwargs, "hidden_states", attending.rows)

    def _before_query(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        attending = self._now()
        return None if attending is None else ((attending.before_query(module, args[0]), *args[1:]), kwargs)

    def _after_query(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        attending = self._now()
        return None if attending is None else attending.after_query(module, output)

    def _own_rows(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        attending = self._now()
        return None if attending is None else ((attending.own(args[0]), *args[1:]), kwargs)
