"""What methods are worth under load: a real server, a real client over loopback, stock and methods in one run.

    python benchmarks/serving.py [--requests 24] [--image 448] [--json FILE]

A Qwen2.5-VL with random weights, large enough that its language model dominates, is served by `foveate serve` with each method
and by `vllm serve` without; a client keeps 1, 8 and 32 requests open, each with an image of its own. TTFT is the time to the
first token, KV the share of the cache in use at the peak, as the server says. Needs `pip install '.[vllm]'` and openai.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import openai
import torch
import vllm
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import foveate_reference as reference
from foveate import ADSC, IPCV, LUVC, Method, Random
from foveate.lab.bench.result import machine

from tables import speed as tables

METHODS: dict[str, Method | None] = {
    "stock": None,
    "Random(keep=0.5)": Random(keep=0.5),
    "ADSC()": ADSC(),
    "LUVC()": LUVC(),
    "IPCV() + ADSC()": IPCV() + ADSC(),
}
CONCURRENCY = (1, 8, 32)
NEW = 16


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


@contextmanager
def served(folder: Path, method: Method | None, options: argparse.Namespace) -> Iterator[int]:
    """The port of a server that is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(folder), "--port", str(port), "--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "32"]
    words += ["--max-num-batched-tokens", "2048", "--no-enable-prefix-caching", "--enforce-eager"]
    if method is None:
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *words]
    else:
        command = [sys.executable, "-m", "foveate", "serve", *words, "--method-json", json.dumps(method.to_dict())]
    log = options.work / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **options.environment}
        )
    try:
        while True:
            time.sleep(1)
            if process.poll() is not None:
                raise SystemExit(log.read_text()[-4000:])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                continue
        yield port
    finally:
        process.terminate()
        process.wait(60)


def picture(side: int, seed: int) -> str:
    """A data URL of noise that nobody has sent before."""
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


async def peak(port: int, done: asyncio.Event) -> float:
    """The most of the KV cache that was in use until then."""
    most = 0.0
    while not done.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), 0.2)
        said = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        )
        used = [float(line.split()[-1]) for line in said.splitlines() if line.startswith("vllm:kv_cache_usage_perc{")]
        most = max(most, *used)
    return most


async def load(port: int, concurrency: int, images: list[str]) -> dict[str, float]:
    """So many requests open at a time until all images are asked about."""
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)
    (model,) = (await client.models.list()).data
    gate, first = asyncio.Semaphore(concurrency), []

    async def one(image: str) -> None:
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "color of circle ?"}]
        async with gate:
            start = time.perf_counter()
            stream: Any = await client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": content}],
                max_tokens=NEW,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            seen = False
            async for chunk in stream:
                if not seen and chunk.choices:
                    first.append(time.perf_counter() - start)
                    seen = True

    done = asyncio.Event()
    watching = asyncio.create_task(peak(port, done))
    start = time.perf_counter()
    await asyncio.gather(*map(one, images))
    seconds = time.perf_counter() - start
    done.set()
    await client.close()
    return {"requests_per_second": len(images) / seconds, "ttft": statistics.median(first), "kv": await watching}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--image", type=int, default=448, help="pixels a side")
    parser.add_argument("--requests", type=int, default=24, help="at 8 open requests; a third of it at 1, twice at 32")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    threads = os.cpu_count() or 1
    options.environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
    command = f"python benchmarks/serving.py --width {options.width} --layers {options.layers} --image {options.image}"
    found: dict[str, Any] = {"methods": {}}
    counts = {1: max(options.requests // 3, 2), 8: options.requests, 32: 2 * options.requests}
    with tempfile.TemporaryDirectory() as temporary:
        options.work = Path(temporary)
        save_model(options.work / "model", options.width, options.layers)
        processor = AutoProcessor.from_pretrained(options.work / "model")
        grid = processor.image_processor(Image.new("RGB", (options.image,) * 2), return_tensors="pt")["image_grid_thw"]
        seed = 0
        for name, method in METHODS.items():
            with served(options.work / "model", method, options) as port:
                asyncio.run(load(port, 2, [picture(options.image, -1 - i + 10**6) for i in range(3)]))  # warms up
                rows = {}
                for n in CONCURRENCY:
                    seed += counts[n]
                    images = [picture(options.image, seed + i) for i in range(counts[n])]
                    rows[str(n)] = asyncio.run(load(port, n, images))
                    print(name, n, rows[str(n)], flush=True)
            found["methods"][name] = rows
    found["settings"] = {
        "command": f"{command} --requests {options.requests}",
        "shape": f"{options.layers} layers of {options.width}, fp32, {int(grid.prod()) // 4} visual tokens, {NEW} new ones",
        "machine": {**machine(torch.device("cpu")), "threads": threads, "vllm": vllm.__version__},
        "requests": counts,
        "options": {name: method.to_dict() for name, method in METHODS.items() if method is not None},
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(tables.serving(found))


if __name__ == "__main__":
    main()
