"""The pixels site: images get a new size before their patches are embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from foveate.models.family import Grid
from foveate.runtime.context import Action
from foveate.runtime.images import Images
from foveate.runtime.layout import frames, tokens_of
from foveate.runtime.packed import Packed
from foveate.runtime.presence import Presence
from foveate.runtime.signals.past import Past
from foveate.runtime.state import States
from foveate.runtime.trace import Trace


def choose_grid(
    images: Images, unit: int, device: torch.device, actions: Sequence[Action], trace: Trace, states: States
) -> tuple[Grid, torch.Tensor]:
    """Ask the methods for the grid of every image; and the cell that each of the new ones stands for."""
    grid = images.grid
    tokens = tokens_of(frames(grid), device)
    cells = torch.arange(len(tokens), device=device)
    for action in actions:
        pixels = partial(_pixels, images, unit, cells)
        here = Presence(Packed(1, len(tokens), tokens), None, Past(), trace, pixels=pixels)
        reduction = action.decide(trace, here.tokens(action, state=states.of(action.method, action.part)))
        assert reduction.shape is not None, "as checked"
        cells = cells[reduction.keep]
        tokens = tokens_of(replace(tokens.spans, shape=reduction.shape), device)
    first = {clip: s for s, clip in reversed(list(enumerate(tokens.spans.clip)))}
    return [(t, *tokens.spans.shape[first[i]]) for i, (t, _, _) in enumerate(grid)], cells


def _pixels(images: Images, unit: int, cells: torch.Tensor) -> torch.Tensor:
    patches = images.patches(unit)
    return patches[cells.to(patches.device)]
