"""What another engine than transformers takes from the runtime. All of it is here; the rest of the runtime may change.

An engine has its own layers, cache and batches. It asks `actions_of` what a method does where, shows each `Action` the tokens
that are present (`Presence`, or `made_up` ones where only counts are wanted), and lets survivors go on. Its vision tower runs
under the hooks of this package (`Tower`), as that is of transformers' form; its decoder layers do not, so what a method wants
to know of them (`Wanted`) the engine itself notes while they run (`Past`, `Reading`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.method import Host, Method
from foveate.models.family import Family
from foveate.runtime.attach import host_with, plan
from foveate.runtime.calls import Calls
from foveate.runtime.context import Action, Context, Record
from foveate.runtime.hooks import Hooks
from foveate.runtime.layout import frames, tokens_of
from foveate.runtime.marks import holes, mark
from foveate.runtime.presence import Presence
from foveate.runtime.signals.kind import CHANNELS, Kind
from foveate.runtime.signals.past import Past, Wanted
from foveate.runtime.signals.pattern import Pattern
from foveate.runtime.signals.reading import Reading
from foveate.runtime.tower import TowerHooks
from foveate.runtime.trace import Trace
from foveate.tokens import Tokens

__all__ = [
    "Action",
    "Kind",
    "Past",
    "Pattern",
    "Presence",
    "Reading",
    "Record",
    "Tower",
    "Trace",
    "Wanted",
    "actions_of",
    "frames",
    "holes",
    "host_with",
    "made_up",
    "mark",
    "tokens_of",
]


def actions_of(method: Method, host: Host, family: Family, config: Any) -> list[Action]:
    """Return what a method does in a model whose blocks and layers are all there, with every layer resolved and checked."""
    return plan(method, host, family, config, host.blocks, host.layers)


def made_up(tokens: Tokens, action: Action, state: dict[str, Any]) -> Tokens:
    """Return the same tokens with hidden states and signals that mean nothing, to ask a method how many of them stay."""
    n, generator = len(tokens), torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator)

    signals = {kind.signal: kind.made_up(draw) for kind in action.asks}
    return replace(tokens, hidden=draw(CHANNELS), signals=signals, state=state)


class Tower:
    """A vision tower of transformers' form, with the sites of a method on it; the parts in it may be an engine's own.

    Args:
        base: the model that the tower is in, as the family knows it.
        family: of that model.
        join: makes a signal of all heads from that of this process, where each has some.
    """

    def __init__(self, base: nn.Module, family: Family, join: Callable[[Kind, Tensor], Tensor]) -> None:
        self.base, self.family, self.join = base, family, join
        self._context, self._hooks = Context(Calls()), Hooks()
        self._acts: Sequence[Action] = ()

    def act(self, actions: Sequence[Action]) -> None:
        """From now on these actions, in order, are done in it, and no others. Records of calls that have failed are gone."""
        self.take_records()
        if actions is self._acts:
            return
        self._hooks.remove()
        self._hooks, self._acts = Hooks(), actions
        hooks = TowerHooks(self.base, self.base.config, self.family, list(actions), self._context, join=self.join)
        hooks.attach(self._hooks)

    def take_records(self) -> list[Record]:
        """Return what the calls of this thread have left since the last question: which rows are holes, sizes, places."""
        records, self._context.records = self._context.records, []
        return records
