"""Packed tokens with random contents, and the grids that they fill."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st

from foveate import Tokens
from foveate.runtime.layout import frames, tokens_of

grids = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3)


def tokens_at(grid: list[tuple[int, int, int]], seed: int, channels: int = 6) -> Tokens:
    """Complete tokens with random hidden states and keys, of different sizes, each span in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    tokens = tokens_of(frames(grid))
    draw = torch.rand(len(tokens), generator=generator)
    tokens = tokens.select((tokens.segment * 2 + draw).argsort(), tokens.counts)
    n = len(tokens)
    sizes = torch.randint(1, 4, (n,), generator=generator).float()
    hidden = torch.randn(n, channels, generator=generator)
    keys = torch.randn(n, 2, 3, generator=generator)
    return replace(tokens, hidden=hidden, sizes=sizes, signals={"keys": keys})
