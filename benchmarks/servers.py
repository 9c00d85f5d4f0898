"""A real server for a benchmark, `vllm serve` or `foveate serve`; a Qwen2.5-VL with random weights; pictures to ask about."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import foveate_reference as reference
from foveate import Method

#: what every server of a benchmark runs with
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}


def save_model(folder: Path, width: int, layers: int) -> None:
    """The shipped model's tower and processor, and a larger language model."""
    source = reference.PATHS["qwen2_5_vl"]
    config = Qwen2_5_VLConfig.from_pretrained(source)
    text: Any = config.text_config
    vision: Any = config.vision_config
    heads = width // 64
    text.update(
        dict(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=heads)
    )
    text.update(
        dict(num_key_value_heads=heads // 4, layer_types=["full_attention"] * layers, max_position_embeddings=4096)
    )
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 12, 12]}
    vision.out_hidden_size = width
    torch.manual_seed(0)
    model: Any = Qwen2_5_VLForConditionalGeneration(config)  # whose `to` is typed as that of no instance
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoProcessor.from_pretrained(source).save_pretrained(folder)


def tokens_of(folder: Path, side: int) -> int:
    """Visual tokens of a square picture."""
    processor = AutoProcessor.from_pretrained(folder)
    grid = processor.image_processor(Image.new("RGB", (side, side)), return_tensors="pt")["image_grid_thw"]
    return int(grid.prod()) // 4


def begin(folder: Path, method: Method | None, words: Sequence[str], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server; its process, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(folder), "--port", str(port), *words]
    if method is None:
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *words]
    else:
        command = [sys.executable, "-m", "foveate", "serve", *words, "--method-json", json.dumps(method.to_dict())]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # a signal to whoever measures is not one to the server
        )
    return process, port


def wait(process: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 600) -> None:
    """Until it is ready."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(log.read_text(errors="replace")[-4000:])
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(1)
    raise SystemExit(f"the server was not ready after {seconds:.0f} s:\n{log.read_text(errors='replace')[-4000:]}")


@contextmanager
def served(folder: Path, method: Method | None, words: Sequence[str], log: Path) -> Iterator[int]:
    """The port of a server that is ready."""
    process, port = begin(folder, method, words, log)
    try:
        wait(process, port, log)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def picture(side: int, seed: int, flat: float = 0) -> str:
    """A data URL of noise, the last ``flat`` of it of one colour; nobody has sent it before where the seed is new."""
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    noise[side - int(flat * side) :] = 128
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def metric(port: int, name: str) -> list[float]:
    """All values of one of the server's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        said = page.read().decode()
    return [float(value) for value in re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", said, re.M)]


async def peak(port: int, done: asyncio.Event) -> float:
    """The most of the KV cache that was in use until then."""
    most = 0.0
    while not done.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), 0.2)
        most = max(most, *await asyncio.to_thread(metric, port, "vllm:kv_cache_usage_perc"))
    return most
