"""Whether a server stays right for hours: no answer is wrong, no block of the KV cache is lost, and memory does not grow.

    python benchmarks/soak.py [--minutes 60] [--seed 0] [--json FILE]

`foveate serve` runs the reference model with a method inside the language model, budgets by image and by request, profiles
and prefix caching. Clients ask at random: text, one image or several, long answers; some hang up in the middle or give up
early, some send broken images or budgets that there are not. Every few minutes all is quiet for a moment and is looked at;
every few of these times the server is stopped, or killed, and started again. What is right is what the first server answers to
each request alone.
It ends with exit code 1 at the first thing that is wrong, with the seed and what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from servers import begin, metric, picture, wait

import foveate_reference as reference
from foveate import ADSC

WORDS = shlex.split(
    "--dtype float32 --enforce-eager --max-model-len 2048 --max-num-seqs 16 --max-num-batched-tokens 1024 --block-size 32 "
    "--num-gpu-blocks-override 600 "  # so few that some requests are preempted, and all are soon in memory
    """--limit-mm-per-prompt '{"image": 3, "video": 0}' --limit 0.8 --adaptive 0.4 --profile early=divprune,keep=0.3 """
    "--profile exact=none --trust-request-mm-kwargs"
)
METHOD = ADSC(layers=(2, 4), keep=0.6)
SYSTEM = "color of circle ? shape of square ? " * 16  # so long that blocks of it are shared
CLIENTS = 12
SETTLED = 60.0  # seconds that a server may take to be quiet when nobody asks any more
GROWTH = 1.25, 200.0  # times, and MiB besides, that memory may grow after the first look


class WrongError(Exception):
    """What must not be."""


@dataclass
class Soak:
    """A run.

    Attributes:
        work: a folder for the log.
        random: decides everything.
        asked: kind of what was done -> how often.
        looks: what was seen each time that all was quiet.
        expected: number of a request -> its answer.
    """

    work: Path
    random: random.Random
    asked: Counter[str] = field(default_factory=Counter)
    looks: list[dict[str, Any]] = field(default_factory=list)
    expected: dict[int, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    def start(self) -> None:
        """Start the server."""
        log = self.work / "server.log"
        self.process, self.port = begin(reference.PATHS["qwen2_5_vl"], METHOD, WORDS, log)
        wait(self.process, self.port, log)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """Stop it and what it has started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            self.process.wait(90)
            with suppress(ProcessLookupError):  # of a parent that was killed, children may be left
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process = None

    def memory(self) -> float:
        """MiB of the server and its children that are their own."""
        assert self.process is not None
        total = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError, ValueError, IndexError):
                if int(path.read_text().rpartition(")")[2].split()[2]) == self.process.pid:  # the process group
                    rollup = (path.parent / "smaps_rollup").read_text()
                    total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
        return total / 1024

    async def post(self, client: httpx.AsyncClient, body: dict[str, Any], seconds: float = 300) -> httpx.Response:
        """Send one request."""
        return await client.post("/v1/chat/completions", json=body, timeout=seconds)

    async def learn(self) -> None:
        """Ask everything once, alone: from now on that is right."""
        async with self.client() as client:
            for number in range(len(BODIES)):
                reply = await self.post(client, BODIES[number])
                reply.raise_for_status()
                self.expected[number] = _text(reply)

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of this server."""
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=300, **options)

    async def ask(self, client: httpx.AsyncClient) -> None:
        """Do something at random."""
        number = self.random.randrange(len(BODIES))
        what = self.random.choices(("answer", "cancel", "timeout", "broken", "budget"), (70, 10, 8, 6, 6))[0]
        self.asked[what] += 1
        if what == "answer":
            reply = await self.post(client, BODIES[number])
            if reply.status_code != 200 or _text(reply) != self.expected[number]:
                says = reply.text[:300] if reply.status_code != 200 else _text(reply)
                raise WrongError(f"request {number}: {says!r}, and alone {self.expected[number]!r}")
        elif what == "cancel":
            chunks = self.random.randrange(4)
            async with client.stream("POST", "/v1/chat/completions", json={**BODIES[number], "stream": True}) as stream:
                async for _ in stream.aiter_lines():
                    if (chunks := chunks - 1) < 0:
                        break
        elif what == "timeout":
            with suppress(httpx.TimeoutException):
                await self.post(client, BODIES[number], self.random.uniform(0.01, 1.0))
        else:
            reply = await self.post(client, BROKEN[what])
            if reply.status_code != 400:
                raise WrongError(f"{what}: status {reply.status_code}, expected 400: {reply.text[:300]}")

    async def busy(self, seconds: float) -> None:
        """Ask from all clients for so long."""
        until = time.monotonic() + seconds

        async def one(client: httpx.AsyncClient) -> None:
            while time.monotonic() < until:
                await self.ask(client)
                await asyncio.sleep(self.random.choice((0, 0, 0.05, 0.5)))

        limits = httpx.Limits(max_connections=CLIENTS)
        async with self.client(limits=limits) as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(CLIENTS)]
            try:
                await asyncio.gather(*tasks)
            finally:  # the first error is enough
                for task in tasks:
                    task.cancel()

    def look(self) -> None:
        """Wait until nothing runs; then no block may be in use, and memory may be what it was."""
        until = time.monotonic() + SETTLED
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        while True:
            # A server says what it holds when it has run a step, and nothing runs after the last cancelled request.
            httpx.post(
                f"http://127.0.0.1:{self.port}/v1/chat/completions", json=BODIES[0], timeout=300
            ).raise_for_status()
            if not any(left := [sum(metric(self.port, name)) for name in names]):
                break
            if time.monotonic() > until:
                raise WrongError(f"nobody asks, and after {SETTLED:.0f} s there are {dict(zip(names, left))}")
            time.sleep(0.5)
        counters = ("vllm:num_preemptions_total", "vllm:prefix_cache_hits_total")
        counted = {name.split(":")[1]: round(sum(metric(self.port, name))) for name in counters}
        seen = {"asked": sum(self.asked.values()), "memory": round(self.memory()), **counted}
        self.looks.append({**seen, "port": self.port})
        print(f"{self.looks[-1]}, {dict(self.asked)}", flush=True)
        same = [each["memory"] for each in self.looks if each["port"] == self.port]
        if len(same) > 2 and same[-1] > GROWTH[0] * same[1] + GROWTH[1]:  # caches of images fill up until the second
            raise WrongError(f"memory grows: {same} MiB")

    def run(self, minutes: float, each: float, restart: int) -> None:
        """All of it."""
        until = time.monotonic() + minutes * 60
        self.start()
        asyncio.run(self.learn())
        self.look()
        while time.monotonic() < until:
            asyncio.run(self.busy(min(each, max(until - time.monotonic(), 1))))
            self.look()
            if len(self.looks) % restart == 0 and time.monotonic() < until:
                sign = self.random.choice((signal.SIGTERM, signal.SIGKILL))
                print(f"restart after {sign.name}", flush=True)
                self.asked[sign.name] += 1
                self.stop(sign)
                self.start()


def _text(reply: httpx.Response) -> str:
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def _body(text: str, images: list[str], new: int, **options: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    return {"messages": [message], "max_tokens": new, "temperature": 0, "ignore_eos": True, **options}


def _bodies() -> list[dict[str, Any]]:
    """What is asked: the same images again and again, so that caches of all kinds are used, with budgets of each kind."""
    wishes: list[dict[str, Any]] = [{}, {"keep": 0.7}, {"profile": "early"}, {"profile": "exact"}]
    found = [_body("color of circle ?", [], 8), _body(SYSTEM, [], 48)]
    for i in range(12):
        images = [picture((48, 80, 112)[(i + k) % 3], i % 5 + k, flat=(i + k) % 4 / 4) for k in range(i % 3 + 1)]
        wish = wishes[i % 4]
        more = {"mm_processor_kwargs": {"foveate": wish}} if wish else {}
        body = _body("color of circle ?", images, (8, 8, 64)[i % 3], **more)
        if i % 2:
            body["messages"].insert(0, {"role": "user", "content": SYSTEM})
        found.append(body)
    return found


BODIES = _bodies()
BROKEN = {
    "broken": _body("?", ["data:image/png;base64,bm8gaW1hZ2U="], 8),
    "budget": _body("?", [picture(48, 1)], 8, mm_processor_kwargs={"foveate": {"keep": 0.95}}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--each", type=float, default=90, help="seconds from one look to the next")
    parser.add_argument("--restart", type=int, default=6, help="after so many looks")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10**6)
    parser.add_argument("--json", type=Path, help="write what was seen here")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    wrong = ""
    with tempfile.TemporaryDirectory() as work:
        soak = Soak(Path(work), random.Random(options.seed))
        try:
            soak.run(options.minutes, options.each, options.restart)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
            print((Path(work) / "server.log").read_text(errors="replace")[-4000:])
        finally:
            soak.stop()
    done = {"seed": options.seed, "asked": dict(soak.asked), "looks": soak.looks, "wrong": wrong}
    if options.json:
        options.json.write_text(json.dumps(done, indent=1) + "\n")
    print(f"wrong: {wrong}" if wrong else f"nothing was wrong: {dict(soak.asked)}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
