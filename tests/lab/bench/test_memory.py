"""Bytes: of live tensors, of a cache, and of what is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foveate.lab.bench import shapes
from foveate.lab.bench.measure import cache_bytes
from foveate.lab.bench.memory import LiveTensors, available, kv_bytes
from foveate.lab.bench.workload import Shaped
from foveate.lab.devices import is_out_of_memory

X = 4 * 100 * 100  # bytes of the matrices below


def test_what_is_alive_at_once() -> None:
    x = torch.randn(100, 100)
    with torch.no_grad(), LiveTensors([x]) as live:
        a = x @ x
        b = a @ x
        assert live.now == 2 * X
        del a
        assert live.now == X
        c = [b @ x for _ in range(3)]
        assert live.now == 4 * X
        del b, c
    assert live.now == 0
    assert live.peak == 4 * X


def test_views_and_what_was_there_cost_nothing() -> None:
    x = torch.randn(100, 100)
    with torch.no_grad(), LiveTensors({"inputs": [x]}) as live:
        views = [x.t(), x[3:], x.view(-1)]
        x.add_(1)
        assert live.peak == 0
        y = x + 1
        views += [y.t()]
        del y
        assert live.now == X, "a view keeps all of it alive"
        del views
        assert live.now == 0


def test_tensors_inside_of_results_count() -> None:
    x = torch.zeros(100)
    with torch.no_grad(), LiveTensors([x]) as live:
        values, indices = x.sort()
        assert live.now == values.nbytes + indices.nbytes == 400 + 800


@pytest.mark.parametrize("name", [name for name in shapes.SHAPES if name.startswith("small-")])
def test_bytes_of_the_cache(name: str) -> None:
    config = shapes.config_of(name)
    model = shapes.build(config, torch.bfloat16, torch.device("cpu"), None, 0)
    prompts = Shaped(config)
    inputs = prompts.inputs(prompts.layout(16), 2, 0)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with torch.inference_mode():
        cache = model(**inputs, logits_to_keep=1).past_key_values
    assert cache_bytes(cache) == kv_bytes(config, inputs["input_ids"].numel(), torch.bfloat16)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says what is free")
def test_what_is_free() -> None:
    free = available(torch.device("cpu"))
    assert free is not None
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free < total
    assert available(torch.device("meta")) is None


def test_errors_of_no_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
