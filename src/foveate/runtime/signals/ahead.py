"""The attention of a layer that has not run yet: its own norm, projections and RoPE, up to the kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import Cache

from foveate.errors import UnsupportedCacheError
from foveate.runtime.hooks import stock_forward
from foveate.runtime.signals.kernel import StoppedError
from foveate.runtime.signals.reading import Reading


@torch.no_grad()
def read_ahead(
    reading: Reading, layer: nn.Module, hidden: Tensor, given: dict[str, Any], entry: Any, n_before: int
) -> None:
    """Run a layer until its attention has been read, and no further; it writes nothing into the cache.

    Args:
        reading: what the layer's probe gives at this moment.
        layer: of the decoder.
        hidden: ``(B, P, C)`` what it will be given.
        given: its other arguments.
        entry: its cache entry, or None.
        n_before: tokens of earlier forwards that its attention will see.
    """
    reading.ahead = True
    if n_before:
        keys = getattr(entry, "keys", None)
        if not isinstance(keys, Tensor) or keys.dim() != 4 or keys.shape[-2] < n_before:
            raise UnsupportedCacheError(
                f"the attention of a layer to come sees {n_before} tokens of earlier forwards, and a "
                f"{type(entry).__name__} does not hold their keys as they are: use a dynamic cache"
            )
        reading.before = keys[..., -n_before:, :].to(hidden.device)
    without = {name: None if isinstance(value, Cache) else value for name, value in given.items()}
    with _Products() as products, suppress(StoppedError):
        stock_forward(layer)(hidden, **without)  # what is put around it is for when it runs
    reading.seen.flops += products.flops


class _Products(TorchFunctionMode):
    """Counts the floating-point operations of linear layers, in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is nn.functional.linear:
            x, weight = args[0], args[1]
            self.flops += 2 * x.shape[:-1].numel() * weight.numel()
        return out
