"""The pixels site: images get a new size before their patches are embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from foveate.runtime.context import Action, TowerPass
from foveate.runtime.layout import frames, tokens_of


def choose_grid(call: TowerPass, actions: Sequence[Action]) -> bool:
    """Ask the methods for the grid of every image; whether it is another one."""
    tokens = tokens_of(frames(call.grid), call.device)
    rows = torch.arange(len(tokens), device=call.device)
    for action in actions:
        tokens = replace(tokens, state=call.states.of(action.method, action.part))
        reduction = action.decide(call.trace, tokens)
        assert reduction.shape is not None, "as checked"
        rows = rows[reduction.keep]
        tokens = tokens_of(replace(tokens.spans, shape=reduction.shape), call.device)
    first = {clip: s for s, clip in reversed(list(enumerate(tokens.spans.clip)))}
    call.grid_now = [(t, *tokens.spans.shape[first[i]]) for i, (t, _, _) in enumerate(call.grid)]
    call.resized = rows
    return call.grid_now != call.grid
