"""The way out of the vocabulary: changes of a model by hand, which the handle undoes. Experimental, so it may change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn


class Changes(Protocol):
    """Changes of a model, undone in reverse order by `Handle.remove`, also after an exception.

    Hooks run outside of graphs that `torch.compile` makes, what `instead` runs does not. Inside, hidden states hold the tokens
    that are present, not all of them, and nothing says which these are.
    """

    def pre(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Before ``module``: ``hook(module, args, kwargs)`` gives new ``(args, kwargs)``, or None to leave them."""

    def post(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """After ``module``: ``hook(module, args, output)`` gives a new output, or None to leave it."""

    def instead(self, module: nn.Module, name: str, run: Callable[..., Any]) -> None:
        """``run(stock, *args, **kwargs)`` in place of the function ``module.name``, which is ``stock``."""

    def change(self, undo: Callable[[], None]) -> None:
        """Any other change, already made: ``undo()`` takes it back."""
