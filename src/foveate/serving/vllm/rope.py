"""Rotary embeddings for positions beyond those of the longest prompt.

Tokens have the positions that they would have without a method, so a prompt that fits because images are smaller may have
positions that the language model has no rows for in its table of sines.
"""

from __future__ import annotations

from typing import Any

import torch

FACTOR = 4  # as many as vLLM has for M-RoPE


def lengthen(decoder: Any) -> None:
    """Make the tables longer, once, where that changes none of their rows."""
    for rope in {module for module in decoder.modules() if hasattr(module, "cos_sin_cache")}:
        if hasattr(rope, "foveate"):  # models share it
            continue
        rope.foveate = True
        known, rows = rope.cos_sin_cache, rope.max_position_embeddings
        rope.max_position_embeddings = rows * FACTOR
        table = rope._compute_cos_sin_cache().to(known)
        if torch.equal(table[: len(known)], known):
            rope.cos_sin_cache = table
        else:  # its frequencies follow from the length
            rope.max_position_embeddings = rows
