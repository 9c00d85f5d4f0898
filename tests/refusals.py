"""A method that acts anywhere, and what refusing one must leave behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from snapshot import state_of
from torch import Tensor, nn

import foveate
from foveate import FoveateError, Host, Method, Reduction, Site, Tokens
from foveate.ops import select

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4, "image", 7]]
ERRORS = {error.__name__: error for error in (RuntimeError, torch.OutOfMemoryError, KeyboardInterrupt)}


@dataclass(frozen=True)
class At(Method):
    """Every second token, at any sites; on demand, an error instead."""

    places: tuple[Site, ...] = ()
    error: str = ""

    def sites(self, host: Host) -> Sequence[Site]:
        return self.places

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        if self.error:
            raise ERRORS[self.error]("raised by the method")
        counts = tokens.budget(0.5)
        return Reduction(select.stride(tokens.counts, counts, tokens.index.device), counts)


@contextmanager
def left_as_it_was(model: nn.Module, batch: dict[str, Tensor]) -> Iterator[Tensor]:
    """The same hooks, attributes and configs after the block as before it, and bit-equal logits. (A model from `tiny`
    has had its first forward, at which stock code adds hooks of its own.)"""
    before = tiny.text_logits(model, batch)
    state = state_of(model)
    yield before
    assert state_of(model) == state
    assert torch.equal(tiny.text_logits(model, batch), before)


def refused(model: Any, method: Any, error: type[FoveateError], sentence: str = ".", **options: Any) -> None:
    """`foveate.compress` raises ``error`` with ``sentence``."""
    with pytest.raises(error, match=sentence):
        foveate.compress(model, method, **options).remove()
