"""One call of `generate`: how long its stages take, and what it costs in FLOPs and bytes."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from foveate.handle import compress
from foveate.lab.bench.flops import flop_counter
from foveate.lab.bench.memory import LiveTensors
from foveate.method import Method
from foveate.models import family_of
from foveate.runtime.cache import cache_among
from foveate.runtime.trace import Trace, tick

Inputs = dict[str, Tensor]


class Arrivals(BaseStreamer):
    """When each token of the answer was there, on the host, as a user would see it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Called with the prompt first, then with every token, which `generate` has brought to the CPU."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is buffered."""


def timed(model: Any, inputs: Inputs, method: Method | None, new_tokens: int) -> dict[str, float]:
    """Seconds of one call that generates ``new_tokens``.

    Returns:
        ``tower`` (with the projector), ``prefill`` (the language model's first forward), ``first`` (from the call to the
        first token, all included), ``total``; where more than one token is generated ``decode``, seconds per token after
        the first; on CUDA ``peak``, bytes allocated at most above those that were before.
    """
    device = model.device
    arrivals, trace = Arrivals(), Trace()
    gc.collect()  # what calls before left in cycles: it must not go in the middle of this one, nor count as held
    with _attached(model, method), _stages(model, trace):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
        start = time.perf_counter()
        _generate(model, inputs, new_tokens, streamer=arrivals)
        total = time.perf_counter() - start
    first, *_, last = arrivals.times[1:] * 2 if new_tokens == 1 else arrivals.times[1:]
    found = {stage: trace.seconds(stage) for stage in ("tower", "prefill")}
    found |= {"first": first - start, "total": total}
    if new_tokens > 1:
        found["decode"] = (last - first) / (new_tokens - 1)
    if device.type == "cuda":
        found["peak"] = torch.cuda.max_memory_allocated(device) - held
    return found


def probe(model: Any, inputs: Inputs, method: Method | None, new_tokens: int) -> dict[str, Any]:
    """FLOPs and bytes of one call, which is not timed.

    Returns:
        ``counted`` FLOPs; ``kv``, bytes of the cache's tensors after the call; of a method, the formula's ``flops`` and
        ``full_flops`` by stage, and ``tokens``, the visual tokens per row and decoder layer; on a CPU ``peak``, bytes of the
        tensors that the call makes, as many as are alive at once.
    """
    live = LiveTensors([*model.parameters(), *model.buffers(), inputs]) if model.device.type == "cpu" else None
    with _attached(model, method) as handle, flop_counter() as counter, live or nullcontext():
        output = _generate(model, inputs, new_tokens, torch.no_grad(), return_dict_in_generate=True)
        report = None if handle is None else handle.report()
    found: dict[str, Any] = {
        "new_tokens": new_tokens,
        "counted": int(counter.get_total_flops()),
        "kv": cache_bytes(cache_among(output.values())),
    }
    if report is not None:
        found |= {"flops": report.flops, "full_flops": report.full_flops, "tokens": report.mean_tokens}
    if live is not None:
        found["peak"] = live.peak
    return found


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds."""
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))


def _attached(model: nn.Module, method: Method | None) -> Any:
    return nullcontext() if method is None else compress(model, method)


def _generate(model: Any, inputs: Inputs, new_tokens: int, mode: Any = None, **options: Any) -> Any:
    with mode or torch.inference_mode():
        return model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **options
        )


@contextmanager
def _stages(model: Any, trace: Trace) -> Iterator[None]:
    """Clocks on tower, projector and language model, outside of all hooks that a method has there."""
    target = model.get_base_model() if hasattr(model, "get_base_model") else model
    family = family_of(target.config)
    base = target.get_submodule(family.base)
    spec = family.tower
    watched = {"tower": [spec.module], "prefill": [family.decoder.module]}
    if not spec.output.startswith(f"{spec.module}."):
        watched["tower"].append(spec.output)
    hooks = []
    for stage, paths in watched.items():
        for path in paths:
            hooks += _clock(base.get_submodule(path), trace, stage)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _clock(module: nn.Module, trace: Trace, stage: str) -> list[Any]:
    began: list[Any] = []

    def start(module: nn.Module, args: Any) -> None:
        began.append(tick(_device(module)))

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        log = trace.clocks.setdefault(stage, [])
        if stage == "tower" or not log:  # what the language model does after its first forward is decoding
            log.append((began.pop(), tick(_device(module))))

    return [module.register_forward_pre_hook(start, prepend=True), module.register_forward_hook(stop)]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
