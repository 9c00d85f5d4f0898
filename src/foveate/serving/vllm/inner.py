"""The language model in a step in which features arrive, where tokens leave inside it.

Its layers run one after another on fewer and fewer tokens; after the last one, those that are left stand at their places among
all tokens of the step, so that the engine finds the ones that it samples from. Every other step is the stock model's, compiled
or not: it differs in the metadata of its layers only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InputError
from foveate.runtime.layout import frames, tokens_of
from foveate.runtime.trace import Trace
from foveate.serving.plan import Plan
from foveate.serving.vllm.columns import Columns
from foveate.tokens import Tokens


class Inner:
    """The decoder of a model of vLLM.

    Attributes:
        names: of the attention layers from each of the plan's layers on, up to the next one.
        step: of the engine, if features arrive in it.
        counts: ``(G, R)`` tokens of each request in this step from each of the plan's layers on.
    """

    def __init__(self, decoder: Any, plan: Plan) -> None:
        self.decoder, self.plan = decoder, plan
        ends = [*plan.layers, len(decoder.layers)][1:]
        self.names = [
            [decoder.layers[i].self_attn.attn.layer_name for i in range(start, end)]
            for start, end in zip(plan.layers, ends)
        ]
        self.step: Any = None
        self.counts: list[Any] = []

    def __call__(self, step: Any, positions: Tensor, embeds: Tensor, columns: Columns, places: Tensor) -> Tensor:
        """Hidden states ``(P, C)`` after the final norm; rows of tokens that have left are zeros.

        Args:
            step: of the engine.
            positions: ``(P,)`` or ``(3, P)``.
            embeds: ``(P, C)``, those of this step first.
            columns, places: of the features, and where they are among the tokens of this step.
        """
        total, n = len(embeds), int(step.count.sum())
        positions, hidden = positions[..., :n], embeds[:n]
        residual: Tensor | None = None
        tokens, rows = self._tokens(step, columns), places.to(embeds.device)
        origin, group, trace = torch.arange(n, device=embeds.device), 0, Trace()
        for i, layer in enumerate(self.decoder.layers):
            for action in (action for action in self.plan.inner if action.site.layer == i):
                state = hidden if residual is None else hidden + residual
                tokens = replace(tokens, hidden=state[rows])
                reduction = action.decide(trace, tokens)
                kept = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
                kept = kept.index_fill(0, rows, False).index_fill(0, rows[reduction.keep], True)
                left = len(hidden) - len(rows) + len(reduction.keep)
                take = torch.argsort((~kept).to(torch.uint8), stable=True)[:left]
                rows = (kept.cumsum(0) - 1)[rows[reduction.keep]]
                tokens = reduction.survivors(tokens)
                hidden, residual = hidden[take], None if residual is None else residual[take]
                if reduction.hidden is not None:
                    hidden = state[take].index_copy(0, rows, reduction.hidden.to(hidden.dtype))
                    residual = None if residual is None else torch.zeros_like(hidden)
                positions, origin = positions[..., take], origin[take]
            if i in self.plan.layers:
                planned = int(self.counts[group].sum())
                if planned != len(hidden):
                    raise InputError(
                        f"{self.plan.method!r} left {len(hidden)} tokens before layer {i}, {planned} were planned"
                    )
                group += 1
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.decoder.norm(hidden, residual)
        return hidden.new_zeros(total, hidden.shape[-1]).index_copy(0, origin, hidden)

    def _tokens(self, step: Any, columns: Columns) -> Tokens:
        """The features of this step as tokens."""
        placed = [each for each, _ in step.within]
        grid = [view for each in placed for view in each.item.grid]
        full = tokens_of(frames(grid))
        counts = tuple(n for each in placed for n in self.plan.entry_counts(each.item))
        first = torch.tensor([sum(other.cells for other in placed[:i]) for i in range(len(placed))])
        which = torch.repeat_interleave(torch.arange(len(placed)), torch.tensor([each.size for each in placed]))
        cell = columns.cell + first[which].to(columns.cell.device)
        index, coords = full.index.to(cell.device)[cell], full.coords.to(cell.device)[cell]
        coords = torch.cat([coords[:, :1], columns.coords], dim=1)
        return replace(full, counts=counts, index=index, sizes=columns.sizes, coords=coords)
