"""The pixels site: images get a new size before their patches are embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from foveate.models.family import Grid
from foveate.runtime.context import Action
from foveate.runtime.layout import frames, tokens_of
from foveate.runtime.state import States
from foveate.runtime.trace import Trace


def choose_grid(
    grid: Grid, device: torch.device, actions: Sequence[Action], trace: Trace, states: States
) -> tuple[Grid, torch.Tensor]:
    """Ask the methods for the grid of every image of ``grid``; and the cell that each of the new ones stands for."""
    tokens = tokens_of(frames(grid), device)
    cells = torch.arange(len(tokens), device=device)
    for action in actions:
        tokens = replace(tokens, state=states.of(action.method, action.part))
        reduction = action.decide(trace, tokens)
        assert reduction.shape is not None, "as checked"
        cells = cells[reduction.keep]
        tokens = tokens_of(replace(tokens.spans, shape=reduction.shape), device)
    first = {clip: s for s, clip in reversed(list(enumerate(tokens.spans.clip)))}
    return [(t, *tokens.spans.shape[first[i]]) for i, (t, _, _) in enumerate(grid)], cells
