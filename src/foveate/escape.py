"""A method may change a model by hand, where the vocabulary does not suffice; the handle undoes it. This is experimental."""

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
        """Call ``hook(module, args, kwargs)`` before ``module``: it gives new ``(args, kwargs)``, or None to leave them."""

    def post(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args, output)`` after ``module``: it gives a new output, or None to leave it."""

    def instead(self, module: nn.Module, name: str, run: Callable[..., Any]) -> None:
        """Call ``run(stock, *args, **kwargs)`` in place of the function ``module.name``, which is ``stock``."""

    def change(self, undo: Callable[[], None]) -> None:
        """Register any other change, already made: ``undo()`` takes it back."""
