"""Rotary embeddings for positions beyond those of the longest prompt.

Tokens have the positions that they would have without a method, so a prompt that fits because images are smaller may have
positions that the language model has no rows for in its table of sines.
"""

from __future__ import annotations

from typing import Any

import torch

from foveate.errors import UnsupportedModelError
from foveate.serving.plan import Counts, Item

FACTOR = 4  # positions by tokens of the longest prompt; as many as vLLM has where it prunes videos itself


def lengthen(decoder: Any, longest: int) -> None:
    """Make the tables so long that they have positions for prompts of ``FACTOR * longest`` tokens.

    Raises:
        UnsupportedModelError: that would change the rows that are there.
    """
    for rope in {module for module in decoder.modules() if hasattr(module, "cos_sin_cache")}:
        known, limit = rope.cos_sin_cache, rope.max_position_embeddings
        if len(known) >= FACTOR * longest:
            continue
        rope.max_position_embeddings = FACTOR * longest
        table = rope._compute_cos_sin_cache().to(known)
        if len(table) < FACTOR * longest or not torch.equal(
            table[: len(known)], known
        ):  # its frequencies follow from it
            rope.max_position_embeddings = limit
            raise UnsupportedModelError(
                f"tokens keep the positions that they have without a method, up to {FACTOR} times --max-model-len, and the "
                f"{type(rope).__name__} of this model ends at {len(known)}: give --max-model-len {len(known) // FACTOR}"
            )
        rope.cos_sin_cache = table


def beyond(item: Item, counts: Counts, mrope: bool) -> int:
    """By how much the positions of an item may outnumber its tokens, of which each span keeps so many."""
    kept = len(item.kept(counts))
    positions = sum(t * max(h, w) for t, h, w in item.grid) if mrope else item.features
    return max(positions - kept, 0)
