"""What methods are worth under load: a real server, a real client over loopback, stock and methods in one run.

    python benchmarks/serving.py [--requests 24] [--image 448] [--json FILE]

A Qwen2.5-VL with random weights, large enough that its language model dominates, is served by `foveate serve` with each method
and by `vllm serve` without; a client keeps 1, 8 and 32 requests open, each with an image of its own. TTFT is the time to the
first token, KV the share of the cache in use at the peak, as the server says. Needs `pip install '.[vllm]'` and openai.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import openai
import torch
import vllm
from servers import peak, picture, save_model, served, tokens_of

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
WORDS = shlex.split(
    "--dtype float32 --max-model-len 2048 --max-num-seqs 32 --max-num-batched-tokens 2048 --no-enable-prefix-caching "
    "--enforce-eager"
)


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
    command = f"python benchmarks/serving.py --width {options.width} --layers {options.layers} --image {options.image}"
    found: dict[str, Any] = {"methods": {}}
    counts = {1: max(options.requests // 3, 2), 8: options.requests, 32: 2 * options.requests}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        save_model(work / "model", options.width, options.layers)
        visual = tokens_of(work / "model", options.image)
        seed = 0
        for name, method in METHODS.items():
            with served(work / "model", method, WORDS, work / "server.log") as port:
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
        "shape": f"{options.layers} layers of {options.width}, fp32, {visual} visual tokens, {NEW} new ones",
        "machine": {**machine(torch.device("cpu")), "threads": threads, "vllm": vllm.__version__},
        "requests": counts,
        "options": {name: method.to_dict() for name, method in METHODS.items() if method is not None},
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(tables.serving(found))


if __name__ == "__main__":
    main()
