"""Results that the layers of one forward share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Memo:
    """Results computed once per forward and shared by its layers. Keeps what the key names alive, so ids stay unique."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def once(self, name: str, alive: tuple[Any, ...], make: Callable[[], T]) -> T:
        """``make()`` for this name and these very objects, computed the first time only."""
        key = (name, *map(id, alive))
        if key not in self._known:
            self._known[key] = (make(), alive)
        result: T = self._known[key][0]
        return result
