"""What the threads that call one model share: which of them are in it now, and the last call that ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

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
