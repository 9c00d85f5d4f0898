"""Devices: by name, whether they are there, and whether a model fits on one."""

from __future__ import annotations

from typing import Any

import torch

from foveate.amounts import amount
from foveate.errors import first_line
from foveate.lab.terminal import CommandError


def device_of(name: str) -> torch.device:
    """``auto``, or what torch understands."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda":
            _check_cuda(name, device.index or 0)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"--device {name!r} cannot be used here: {first_line(error)}") from None
    return device


def _check_cuda(name: str, index: int) -> None:
    """Raise `CommandError` unless there is such a CUDA device."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index < count:
        return
    why = (
        f"torch {torch.__version__} sees none"
        if torch.version.cuda
        else f"torch {torch.__version__} is built without CUDA"
    )
    there = f"there {'is' if count == 1 else 'are'} {count}, counted from 0" if count else why
    raise CommandError(f"--device {name!r} cannot be used here: of CUDA devices {there}; give --device cpu, or auto")


def put(model: Any, device: torch.device, name: str) -> None:
    """Put a model on a device.

    Raises:
        CommandError: the memory there is not enough for it.
    """
    try:
        model.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = amount(sum(each.nbytes for each in model.parameters()), "B")
        dtype = str(model.dtype).removeprefix("torch.")
        raise CommandError(
            f"{name!r} does not fit: its weights in {dtype} need {size}, and {device} has not as much free: choose "
            "a smaller model, --dtype bfloat16, or another --device"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch's says that there is no memory left."""
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
