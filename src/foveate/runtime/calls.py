"""What the threads that call one model share: which of them are in it now, and the last call that ended."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from torch import nn

from foveate.errors import UnsupportedModelError
from foveate.runtime.trace import Trace

Part = Literal["tower", "model"]

#: Seconds that taking a method off waits for the forwards of other threads.
PATIENCE = 60.0


class Calls:
    """The forwards of a model with a method on it, of all threads.

    Attributes:
        last: what happened in the last call with a forward that has ended, or None: there was none.
        tracing: how many have asked for the details of calls that begin now.
    """

    def __init__(self) -> None:
        self.last: Trace | None = None
        self.tracing = 0
        self._changed = threading.Condition()
        self._inside: set[tuple[threading.Thread, Part]] = set()

    def enter(self, part: Part) -> None:
        """This thread begins a forward of the vision tower (and its projector), or of the model. Waits while `quiet`."""
        with self._changed:
            self._inside.add((threading.current_thread(), part))

    def leave(self, part: Part, trace: Trace | None = None) -> None:
        """It has ended; with a ``trace``, as it should."""
        me, parts = threading.current_thread(), ("tower",) if part == "tower" else ("tower", "model")
        with self._changed:
            self._inside -= {(me, each) for each in parts}
            self.last = trace or self.last
            self._changed.notify_all()

    def check_begun(self, base: nn.Module) -> None:
        """Raise `UnsupportedModelError` if this thread is in a forward that began before the method was there.

        Such a forward has not met all hooks of the model, and would meet those of its parts: tokens would leave unnoticed.

        Args:
            base: the module whose forward joins vision and text. A part of it may be called alone: then it is not on the stack.
        """
        with self._changed:
            if (threading.current_thread(), "model") in self._inside:
                return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == "forward" and frame.f_locals.get("self") is base:
                raise UnsupportedModelError(
                    "the method was put on this model while a forward of this thread was in it: call the model again"
                )
            frame = frame.f_back

    @contextmanager
    def detailed(self) -> Iterator[None]:
        """Calls that begin while the block runs, of any thread, are noted in detail."""
        with self._changed:
            self.tracing += 1
        try:
            yield
        finally:
            with self._changed:
                self.tracing -= 1

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No other thread is in a forward, nor begins one, while the block runs.

        Raises:
            UnsupportedModelError: one is, and does not end.
        """
        end = time.monotonic() + PATIENCE
        with self._changed:
            while names := self._others():
                if time.monotonic() > end:
                    raise UnsupportedModelError(
                        f"the thread {names[0]!r} has been in a forward of this model for more than {PATIENCE:g} s: let it "
                        "end, then remove the handle"
                    )
                self._changed.wait(0.1)  # a thread may also die in a forward, and tell nobody
            yield

    def _others(self) -> list[str]:
        me = threading.current_thread()
        return sorted(thread.name for thread, _ in self._inside if thread is not me and thread.is_alive())
