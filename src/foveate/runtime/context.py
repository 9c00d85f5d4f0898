"""State of the calls in flight, per thread and per handle. Nothing here outlives a call but the last trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.method import Method, Site
from foveate.runtime.trace import Trace

if TYPE_CHECKING:
    from foveate.runtime.decoder import DecoderPass
    from foveate.runtime.tower import TowerPass


@dataclass(frozen=True)
class Action:
    """A method at one of its sites, with the layer resolved."""

    site: Site
    method: Method
    order: int  # rank among all actions of the handle: names the method's memory


@dataclass(eq=False)
class Record:
    """What the tower produced in one call: the only knowledge of spans there is, since ``generate()`` hands over
    features alone. Rows are those of the features, in order.

    Attributes:
        grid: images and videos, in language-model tokens.
        kept_rows: rows in front of each image that stand for no patch.
        features: ``(R, C)`` as handed to stock code, holes and all.
        kept: ``(K,)`` rows that are not holes, or None: all.
        sizes, coords: of the kept rows, ``(K,)`` and ``(K, 3)``; None where nothing was merged.
        trace: of the tower call.
        consumed: a language-model forward has used it; the next tower call starts a new prompt.
        seen: tokens per (action, row, span) that earlier chunks of the prompt brought to a site.
        started: first feature row of each batch row, once chunked prefill has met it.
    """

    grid: list[tuple[int, int, int]]
    kept_rows: int
    features: Tensor
    kept: Tensor | None
    sizes: Tensor | None
    coords: Tensor | None
    trace: Trace
    consumed: bool = False
    seen: dict[tuple[int, int, int], int] = field(default_factory=dict)
    progress: dict[int, int] = field(default_factory=dict)


@dataclass
class Inputs:
    """What the base model was called with, for the language model's hooks to find the placeholders."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    modalities: tuple[str, ...]  # pixel arguments whose features this forward brings


class Context(threading.local):
    """Calls in flight in this thread."""

    def __init__(self) -> None:
        self.tower: TowerPass | None = None
        self.records: list[Record] = []
        self.inputs: Inputs | None = None
        self.decoder: DecoderPass | None = None
        self.trace = Trace()


class Hooks:
    """Hooks and other changes of a model, undone in reverse order."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def pre(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """``hook(module, args, kwargs) -> None | (args, kwargs)``."""
        self._keep(module.register_forward_pre_hook(hook, with_kwargs=True))

    def post(self, module: nn.Module, hook: Callable[..., Any], *, first: bool = False, always: bool = False) -> None:
        """``hook(module, args, output) -> None | output``; ``first`` before other hooks, ``always`` after errors too."""
        self._keep(module.register_forward_hook(hook, prepend=first, always_call=always))

    def _keep(self, handle: RemovableHandle) -> None:
        self._undo.append(handle.remove)

    def change(self, undo: Callable[[], None]) -> None:
        """Register the undoing of some other change."""
        self._undo.append(undo)

    def remove(self) -> None:
        """Undo everything; calling it again does nothing."""
        while self._undo:
            self._undo.pop()()


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """The main input of a module, passed by position or by name."""
    return args[0] if args else kwargs[name]


def replace_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with another main input."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, name: value}
