"""Notes of a stock call: which module was called when, inside which other one, with what, and what it gave."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(eq=False)  # a call is itself
class Call:
    """One call of a module.

    Attributes:
        path: its path under the model.
        module: itself.
        given: its arguments by name.
        args, kwargs: the same as they came.
        start, end: moments of the whole call, counted.
        parent: the call in which it was made.
        output: what it gave; of a tuple, the first.
        encoding: whether an image was being encoded.
    """

    path: str
    module: nn.Module
    given: dict[str, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    start: int
    parent: Call | None
    encoding: bool
    end: int = -1
    output: Any = None

    @property
    def name(self) -> str:
        """Its name in the module that it is in."""
        return self.path.rpartition(".")[2]

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.module).__name__

    @property
    def input(self) -> Tensor | None:
        """The first tensor that it was given."""
        return next(
            (value for value in self.given.values() if isinstance(value, Tensor) and value.is_floating_point()), None
        )

    @property
    def rows(self) -> tuple[int, int]:
        """How many rows of channels went in and came out; -1 where there is no tensor."""
        return _rows(self.input), _rows(self.output)

    def below(self, path: str) -> bool:
        """Whether it is inside a module."""
        return self.path.startswith(f"{path}.")


@dataclass
class Notes:
    """All calls of a forward, in order, and what became of its images."""

    calls: list[Call] = field(default_factory=list)
    open: list[Call] = field(default_factory=list)
    moment: int = 0
    encoding: bool = False
    made: Any = None

    def inside(self, call: Call) -> list[Call]:
        """The calls that were made directly in another."""
        return [each for each in self.calls if each.parent is call]


def _rows(value: Any) -> int:
    return int(value.shape[:-1].numel()) if isinstance(value, Tensor) and value.dim() > 1 else -1


@contextmanager
def listening(model: nn.Module, base: Any) -> Iterator[Notes]:
    """Take notes of what is called in ``model``, and of whether it is in the function of ``base`` that encodes images."""
    notes, hooks = Notes(), []
    stock = base.get_image_features

    def encode(*args: Any, **kwargs: Any) -> Any:
        notes.encoding = True
        try:
            notes.made = stock(*args, **kwargs)
            return notes.made
        finally:
            notes.encoding = False

    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            continue

        def begin(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            notes.moment += 1
            parent = notes.open[-1] if notes.open else None
            call = Call(path, module, _given(module, args, kwargs), args, kwargs, notes.moment, parent, notes.encoding)
            notes.calls.append(call)
            notes.open.append(call)

        def end(module: nn.Module, args: Any, output: Any) -> None:
            notes.moment += 1
            call = notes.open.pop()
            call.end, call.output = notes.moment, output[0] if isinstance(output, tuple) and output else output

        hooks += [module.register_forward_pre_hook(begin, with_kwargs=True), module.register_forward_hook(end)]
    base.get_image_features = encode
    try:
        yield notes
    finally:
        del base.get_image_features
        for hook in hooks:
            hook.remove()


def _given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; what the signature does not name keeps the name that it came with."""
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    positional = {names[i] if i < len(names) else f"argument {i}": value for i, value in enumerate(args)}
    return positional | kwargs
