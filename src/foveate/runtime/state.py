"""What methods remember: a dict for every part of a sum, from its first site of a prompt to the end of the KV cache."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from foveate.errors import UnsupportedCacheError
from foveate.method import Method
from foveate.runtime.cache import CompactMixin, KVIndex, compact
from foveate.runtime.prompt import Denoised
from foveate.runtime.remembering import Memory
from foveate.tokens import Tokens

State = MutableMapping[str, Any]


@dataclass(eq=False)
class States:
    """`Tokens.state` of every part. A prompt makes one; a cache entry carries it on, and reports what happens to the cache.

    Attributes:
        parts: the dict of each part, by its rank in the sum and its name.
        memories: what was remembered of images at each ``remember`` site, by `Action.memory`.
        appending: by the rank of an ``append`` site: tokens of images and frames of which the last one has not come, and of
            how many tokens of each clip, by row, it has.
        images: length of the full sequence up to its last visual token.
        denoised: how far an answer has come, where a site of the cache acts at a denoising step.
    """

    parts: dict[str, State] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    appending: dict[int, tuple[Tokens | None, dict[tuple[int, int], int]]] = field(default_factory=dict)
    images: int = 0
    denoised: Denoised | None = None
    _changes: dict[str, list[Tensor | None]] = field(default_factory=dict)  # that a part has yet to follow

    def of(self, method: Method, part: int) -> State:
        """Return the dict of a part, fitted to the cache as it is now."""
        key = f"{part} {method.name()}"
        state = self.parts.setdefault(key, {})
        for rows in self._changes.pop(key, ()):
            method.follow(state, rows)
        return state

    def select(self, rows: Tensor) -> None:
        """Follow a cache whose rows are now ``rows (B',)`` of those before (beams, expansion)."""
        if self.denoised is not None:
            self.denoised.select(rows)
        if self.memories:
            chosen = rows.tolist()
            for memory in self.memories.values():
                memory.select(chosen)
        for key, state in self.parts.items():
            changes = self._changes.setdefault(key, []) if state else []
            if changes and changes[-1] is not None:
                changes[-1] = changes[-1][rows.to(changes[-1].device)]
            else:
                changes.append(rows)

    def crop(self, length: int) -> None:
        """Follow a cache that now ends after ``length`` tokens of the full sequence."""
        self.appending.clear()
        for memory in self.memories.values():
            memory.crop(length)
        for key, state in self.parts.items():
            changes = self._changes.setdefault(key, []) if state else []
            if length < self.images:
                state.clear()
            elif not changes or changes[-1] is not None:
                changes.append(None)

    def update(self, newer: States) -> None:
        """Add what a later prompt has remembered in the vision tower, before its cache was known."""
        for key, state in newer.parts.items():
            self.parts.setdefault(key, {}).update(state)


class Begun:
    """What is remembered of a prompt from the vision tower on, until the language model has its features."""

    def __init__(self) -> None:
        self.states, self._met = States(), False

    def meet(self, kept: States | None, cached: bool) -> States:
        """Return what is remembered in a language-model forward that brings these features.

        It is this, or what the cache has ``kept``, to which this is added. If nothing is ``cached``, stock code brings the
        features again for every token: each of these forwards begins with what the tower has left.
        """
        begun, met = self.states, self._met
        self.states, self._met = begun if cached else copy.deepcopy(begun), True
        if kept is None:
            return begun
        if not met:
            kept.update(begun)
        return kept


def states_in(cache: Cache | None) -> States | None:
    """Return what methods remember with a cache; None: nothing."""
    entries = [] if cache is None else cache.layers
    return next((e.states for e in entries if isinstance(e, CompactMixin) and e.states is not None), None)


def keep_states(cache: Cache | None, states: States, length: int) -> None:
    """Let an entry of a cache, which holds ``length`` tokens of the full sequence, carry what methods remember, if anything."""
    if cache is None or states_in(cache) is not None:
        return
    layers = list(enumerate(cache.layers))
    compacted = (i for i, entry in layers if isinstance(entry, CompactMixin))
    # The last one, as stock code asks the first one that slides for the mask of all that do.
    others = (i for i, entry in reversed(layers) if isinstance(entry, DynamicLayer) and entry.is_initialized)
    kept = any(states.parts.values()) or states.memories or states.appending
    number = next(compacted, next(others, None) if kept else None)
    if number is not None:
        compact(cache, number, KVIndex(length, length)).states = states
    elif states.memories:  # (in a static cache a state may be lost without harm)
        names = " and ".join(sorted({memory.method for memory in states.memories.values()}))
        raise UnsupportedCacheError(
            f"a cache of {type(cache.layers[0]).__name__} cannot carry what {names} remembers of an image: use the default "
            "DynamicCache (generate without cache_implementation='static')"
        )
