"""How long a run may take, and what becomes of a part that does not fit into it, or into memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from foveate.errors import FoveateError, first_line
from foveate.lab.bench import memory
from foveate.lab.devices import is_out_of_memory

TIME_IS_UP = "not run: the time was up"
#: What torch says where the kernel that was asked for cannot do it.
NO_KERNEL = ("No available kernel", "Invalid backend")


class Limit:
    """A clock that says how many seconds are left of a budget."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the time is up; below 0: it is."""
        return self._end - time.monotonic()

    def part(self, share: float) -> Limit:
        """A limit of its own that ends with this one at the latest, with a share of what is left."""
        return Limit(self.left * share)


def tried(call: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """What ``call`` finds; what keeps it from finding something is a ``status`` in words, and the run goes on.

    That memory is short, or that a kernel cannot do what is asked of it, is a finding. Any other error is a failure, which
    says so, too.
    """
    try:
        return call()
    except FoveateError as error:
        return {"status": f"refused: {first_line(error)}"}
    except Exception as error:
        status = _in_words(error)
    memory.give_back(device)  # not while the error is handled, which holds the tensors of its frames
    return {"status": status}


def _in_words(error: Exception) -> str:
    if is_out_of_memory(error):
        return "out of memory"
    if any(words in str(error) for words in NO_KERNEL):
        return "not possible: this kernel takes no mask"
    return f"failed: {type(error).__name__}: {first_line(error)}"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything: clocks of the host say nothing before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
