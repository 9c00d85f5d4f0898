"""What methods are worth under a mixed load: throughput, latencies and KV memory with 1 to 64 open requests.

    python benchmarks/load.py [--repeats 3] [--minutes 15] [--json FILE]
    python benchmarks/load.py --rehearse      # small: that it runs, and nothing else
    benchmarks/gpu_serving.sh --json FILE     # on a GPU: true sizes, with CUDA graphs and without

Servers of the stock model and of each method run side by side and are asked in turn, one at a time, so that each figure of a
method has one of the stock model from the same minute; figures are medians over rounds, with the smallest and the largest. Of
ten requests two are text, five have an image, one has three, and two want a long answer. All images are new.

It says first how long it will take. After each round it asks itself whether there is time for another one. Needs
`pip install '.[vllm]'` and openai.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import torch
import vllm
from servers import peak, picture, save_model, served, tokens_of

from foveate import ADSC, LUVC, Method, Random
from foveate.lab.bench.result import machine

from tables import load as tables

METHODS: dict[str, Method | None] = {
    "stock": None,
    "Random(keep=0.5)": Random(keep=0.5),
    "ADSC()": ADSC(),
    "LUVC()": LUVC(),
}
#: kind -> images, tokens of the answer
KINDS = {"text": (0, 16), "image": (1, 16), "images": (3, 16), "long": (1, 64)}
MIX = ("text", "text", "image", "image", "image", "image", "image", "images", "long", "long")
START = 45  # seconds that a server takes to start, for the forecast
EFFICIENCY = 0.3  # of the machine's matrix products that an engine reaches, for the forecast


@dataclass(frozen=True)
class Size:
    """How large all of it is.

    Attributes:
        width, layers: of the language model.
        image: pixels a side.
        requests: open ones -> how many are sent.
        words: of `vllm serve`.
    """

    width: int
    layers: int
    image: int
    requests: dict[int, int]
    words: list[str]


COUNTS = '{"image": 3, "video": 0}'
COMMON = f"--max-model-len 4096 --max-num-seqs 64 --no-enable-prefix-caching --limit-mm-per-prompt '{COUNTS}'"
ON_CPU = shlex.split(f"{COMMON} --dtype float32 --max-num-batched-tokens 2048 --enforce-eager")
ON_GPU = shlex.split(f"{COMMON} --dtype bfloat16 --max-num-batched-tokens 8192 --kv-cache-memory-bytes 4G")
CPU = Size(512, 8, 320, {1: 5, 8: 16, 32: 32, 64: 64}, ON_CPU)
GPU = Size(2048, 24, 512, {1: 10, 8: 40, 32: 128, 64: 192}, ON_GPU)
SMALL = Size(256, 4, 112, {1: 3, 4: 10}, ON_CPU)


@dataclass(frozen=True)
class Contestant:
    """A server: a method, and further words for it."""

    name: str
    method: Method | None
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What is asked: images, and how long the answer is to be."""

    kind: str
    images: tuple[str, ...]
    new: int

    @property
    def content(self) -> list[dict[str, Any]]:
        """Parts of a chat message."""
        images = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        return [*images, {"type": "text", "text": "color of circle ? " * (8 if self.kind == "text" else 1)}]


def requests(n: int, side: int, seed: int) -> list[Request]:
    """``n`` requests in the proportions of the mix, shuffled, whose images nobody has sent before."""
    kinds = [MIX[i % len(MIX)] for i in range(n)]
    random.Random(seed).shuffle(kinds)
    found = []
    for i, kind in enumerate(kinds):
        images, new = KINDS[kind]
        urls = tuple(picture(side, (seed * 1000 + i) * 8 + k) for k in range(images))
        found.append(Request(kind, urls, new))
    return found


def at(values: list[float], share: float) -> float:
    """A percentile, the nearest rank."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


async def ask(port: int, concurrency: int, wanted: list[Request]) -> tuple[dict[str, float], list[str]]:
    """Figures of so many requests open at a time until all are answered, and the answers."""
    client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)
    (model,) = (await client.models.list()).data
    gate, first, each, tokens = asyncio.Semaphore(concurrency), [], [], 0

    async def one(request: Request) -> str:
        nonlocal tokens
        async with gate:
            start, begun, text, used = time.perf_counter(), 0.0, "", 0
            stream: Any = await client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": request.content}],
                max_tokens=request.new,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            async for chunk in stream:
                begun = begun or time.perf_counter()
                text += chunk.choices[0].delta.content or "" if chunk.choices else ""
                used = chunk.usage.completion_tokens if chunk.usage else used
            first.append(begun - start)
            each.append((time.perf_counter() - begun) / max(used - 1, 1))
            tokens += used
            return text

    done = asyncio.Event()
    watching = asyncio.create_task(peak(port, done))
    start = time.perf_counter()
    answers = await asyncio.gather(*map(one, wanted))
    seconds = time.perf_counter() - start
    done.set()
    await client.close()
    figures = {
        "requests_per_second": len(wanted) / seconds,
        "tokens_per_second": tokens / seconds,
        "ttft_p50": statistics.median(first),
        "ttft_p99": at(first, 0.99),
        "per_token": statistics.median(each),
        "kv": await watching,
    }
    return figures, answers


def forecast(size: Size, contestants: int, repeats: int, visual: int, device: torch.device) -> float:
    """Minutes that all of it may take, by the matrix products that this machine does in a moment."""
    x = torch.randn(1024, 1024, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    speed = 0.0
    for _ in range(4):
        start = time.perf_counter()
        float((x @ x).sum())
        speed = max(speed, 2 * 1024**3 / (time.perf_counter() - start))
    weights = size.layers * size.width**2 * (2.5 + 9)  # of attention, and of an FFN that is three times as wide
    mean = sum(30 + KINDS[kind][0] * visual + KINDS[kind][1] for kind in MIX) / len(MIX)
    work = 2 * weights * mean * sum(size.requests.values()) / (speed * EFFICIENCY)
    return contestants * (START + repeats * work) / 60


def rounds(
    ports: dict[str, int], size: Size, repeats: int, until: float, first: int = 1
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Contestant -> open requests -> figures of each round; there is at least one, and no more than there is time for."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {str(n): [] for n in size.requests} for name in ports}
    names = list(ports)
    for number in range(repeats):
        began = time.monotonic()
        for k, (n, count) in enumerate(size.requests.items()):
            wanted = requests(count, size.image, first + number * 100 + n)
            turn = (number + k) % len(names)
            for name in names[turn:] + names[:turn]:
                figures, _ = asyncio.run(ask(ports[name], n, wanted))
                found[name][str(n)].append(figures)
                said = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
                print(f"round {number + 1}, {n} open, {name}: {said}", flush=True)
        took = time.monotonic() - began
        print(f"round {number + 1} took {took / 60:.1f} minutes", flush=True)
        if number + 1 < repeats and time.monotonic() + took > until:
            print(f"no time for another of the {repeats} rounds", flush=True)
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--minutes", type=float, default=15, help="after which no round is begun")
    parser.add_argument("--rehearse", action="store_true", help="a small model, and few requests")
    parser.add_argument("--gpu", action="store_true", help="a larger model; with CUDA graphs and without")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    began = time.monotonic()
    device = torch.device("cuda" if options.gpu and not options.rehearse else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("--gpu needs a GPU, and torch sees none: leave it out, or add --rehearse")
    size = SMALL if options.rehearse else GPU if options.gpu else CPU
    contestants = [Contestant(name, method) for name, method in METHODS.items()]
    if options.rehearse:
        contestants = [each for each in contestants if each.name in ("stock", "LUVC()")]
    if options.gpu:  # those of before capture graphs; on a CPU, there are none to capture
        eager = [Contestant(f"{each.name}, eager", each.method, ("--enforce-eager",)) for each in contestants]
        contestants += [each for each in eager if each.method is None or "LUVC" in each.name]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        work = Path(temporary)
        save_model(work / "model", size.width, size.layers)
        visual = tokens_of(work / "model", size.image)
        minutes = forecast(size, len(contestants), options.repeats, visual, device)
        print(f"this takes about {minutes:.0f} minutes, and ends after {options.minutes:.0f}", flush=True)
        ports: dict[str, int] = {}
        warm = requests(4, size.image, 0)
        answers: dict[str, list[str]] = {}
        for each in contestants:
            words = (*size.words, *(word for word in each.words if word not in size.words))
            log = work / f"{len(ports)}.log"
            ports[each.name] = stack.enter_context(served(work / "model", each.method, words, log))
            answers[each.name] = asyncio.run(ask(ports[each.name], 1, warm))[1]
            print(f"{each.name} is ready after {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
        found: dict[str, Any] = {"methods": rounds(ports, size, options.repeats, began + options.minutes * 60)}
    found["settings"] = {
        "shape": f"{size.layers} layers of {size.width}, {visual} visual tokens an image",
        "machine": {**machine(device), "threads": os.cpu_count() or 1, "vllm": vllm.__version__},
        "requests": size.requests,
        "mix": {kind: MIX.count(kind) / len(MIX) for kind in KINDS},
        "words": list(size.words),
        "rehearsal": options.rehearse,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "options": {name: method.to_dict() for name, method in METHODS.items() if method is not None},
    }
    found["same_with_graphs"] = {
        name: sum(a == b for a, b in zip(answers[name], answers[f"{name}, eager"])) / len(warm)
        for name in answers
        if f"{name}, eager" in answers
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(tables.curve(found))


if __name__ == "__main__":
    main()
