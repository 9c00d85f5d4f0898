"""Memory: whether a model fits before it is built, and what a call needs above it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveate.amounts import amount
from foveate.lab.terminal import CommandError


class LiveTensors(TorchDispatchMode):
    """Bytes of the tensors that operations inside it make, as many as are alive at once.

    Storages are counted, so a view costs nothing; what a kernel takes for itself and gives back is not seen.

    Args:
        known: what is there already; views of these are no new memory.

    Attributes:
        peak: the most, in bytes.
    """

    def __init__(self, known: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for leaf in tree_leaves(known):
            if isinstance(leaf, Tensor):
                self._known.add(leaf.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def available(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device now; None where nobody can tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    free = [_free(), _free_in_group()]
    return min((each for each in free if each is not None), default=None)


def kv_bytes(config: Any, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the stock KV cache of so many tokens."""
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * head * tokens * dtype.itemsize)


def check_fit(name: str, skeleton: nn.Module, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise `CommandError` if weights and KV cache alone do not fit; nothing is allocated.

    Args:
        name: of the shape.
        skeleton: its model on the device ``meta``.
        tokens: in the KV cache of the largest call, all rows of the batch together, with text and answer.
        dtype, device: of weights and cache.
    """
    config: Any = skeleton.config
    weights = sum(parameter.numel() for parameter in skeleton.parameters()) * dtype.itemsize
    cache, free = kv_bytes(config, tokens, dtype), available(device)
    if free is not None and weights + cache > free:
        sizes = [amount(size, "B") for size in (weights, cache, free)]
        raise CommandError(
            f"{name} does not fit: its weights in {str(dtype).removeprefix('torch.')} need {sizes[0]} and a KV cache of "
            f"{tokens:,} tokens {sizes[1]}, and {device} has {sizes[2]} free: choose a smaller --shape, another --dtype or "
            "--device, or fewer --tokens"
        )


def give_back(device: torch.device) -> None:
    """Make free what a failed call has left; not while its error is being handled, which holds the tensors of its frames."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _free() -> int | None:
    """What Linux says is available; elsewhere nobody asks."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _free_in_group() -> int | None:
    """What a container leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text()
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
