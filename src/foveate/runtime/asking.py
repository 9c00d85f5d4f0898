"""Hooks of decoder layers whose attention has queries of some rows only (`queries.Queries`).

Two sites need them: ``skip`` at the attention, and ``attend``, where tokens that are set aside lend keys and values. For the
latter the norm before the attention is shown all rows, as the method says they are; the output projection and everything after
it see the layer's own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.errors import UnsupportedSiteError
from foveate.models.family import Decoder
from foveate.runtime.context import Context, DecoderPass
from foveate.runtime.hooks import Hooks, first_argument, replace_first
from foveate.runtime.layout import Rows
from foveate.runtime.parking import Lot
from foveate.runtime.queries import Queries
from foveate.runtime.signals.kernel import is_flash
from foveate.runtime.signals.reading import Reading
from foveate.runtime.trace import PartTrace


class QueryHooks:
    """Puts them on decoder layer ``i``; they do nothing while `DecoderPass.queries` is None."""

    def __init__(self, i: int, layer: nn.Module, spec: Decoder, context: Context) -> None:
        self.i, self.layer, self.context = i, layer, context
        self.attention = layer.get_submodule(spec.attention)
        self.norm = layer.get_submodule(spec.attention_norm)
        self.first, self.last = (self.attention.get_submodule(name) for name in (spec.query, spec.attention_end))

    def attach(self, hooks: Hooks) -> None:
        """Hook the layer. The kernel of its attention must be watched, too (`signals.watch`)."""
        hooks.pre(self.norm, self._lend)
        for module in (self.first, self.last):
            hooks.pre(module, self._before_projection)
            hooks.post(module, self._after_projection, first=True)
        hooks.post(self.attention, self._end)

    def ask(self, call: DecoderPass, asking: Rows, take: Tensor, width: int, lent: Tensor | None = None) -> None:
        """Only ``take (B, Q)`` of the ``width`` rows ask in the attention that comes; see `Queries`."""
        flash = is_flash(self.attention)
        causal = bool(getattr(self.attention, "is_causal", True))
        queries = call.queries = Queries(asking, take, width, lent, causal=causal, flash=flash)
        queries.tell(call.seen.readings.setdefault(self.i, Reading(width=width)))
        part = part_of(call)
        part.keys, part.queries = call.batch * width, len(queries.place)
        part.kernel = width if flash else take.shape[1]

    def lend(self, call: DecoderPass, lot: Lot[Rows], rows: Tensor) -> None:
        """The attention that comes sees ``rows (B, P, C)`` of all tokens; those set aside ask nothing."""
        refuse_replay(self.i, self.layer)
        assert call.layout is not None
        self.ask(call, call.layout, lot.kept, rows.shape[1], rows)

    def _lend(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        queries = self.context.decoder.queries if self.context.decoder else None
        if queries is None or queries.lent is None:
            return None
        return replace_first(args, kwargs, "hidden_states", queries.lent)

    def _before_projection(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        queries = self.context.decoder.queries if self.context.decoder else None
        if queries is None:
            return None
        x = queries.own(first_argument(args, kwargs, "input"))
        return replace_first(args, kwargs, "input", x)

    def _after_projection(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        queries = self.context.decoder.queries if self.context.decoder else None
        if queries is None or (module is self.last and queries.alone):
            return None
        return queries.back(output)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.context.decoder is not None:
            self.context.decoder.queries = None


def part_of(call: DecoderPass) -> PartTrace:
    """Return the notes on the parts of the layer that runs now."""
    layer = call.trace.prefill[-1]
    layer.parts = layer.parts or PartTrace()
    return layer.parts


def refuse_replay(i: int, layer: nn.Module) -> None:
    """Raise where a layer would be run again for its gradients, without us."""
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        raise UnsupportedSiteError(
            f"what happens inside decoder layer {i} cannot be replayed by gradient checkpointing: call "
            "gradient_checkpointing_disable() on the model"
        )
