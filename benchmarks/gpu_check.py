"""Whether everything holds on one GPU, and how fast it is there, in ten minutes. `gpu_check.sh` runs it.

    benchmarks/gpu_check.sh [--out FILE] [--seconds 570] [--device cuda] [--only agreement --only speed]
    benchmarks/gpu_check.sh --rehearse        # all of it on the CPU, with small models: that it runs, and nothing else

Weights are random, in layers of the true shape of Qwen2.5-VL-7B and LLaVA-1.5-7B.

*Agreement*: models of six layers and four vision blocks, bfloat16. For every kind of answer that a method can give, logits of
the prompt and of three steps with each attention kernel, beside those with plain ("eager") attention. The choices are those of
the plain run (`gpu/answers.py`). A kernel agrees where the difference is at most five times that of the stock model.

*Speed*: models of full depth, or what fits into memory. The stock model and every method in rounds, each in another order;
figures are medians of the ratios within a round.

What there is no time for is not run, and says so; the file is whole after every part. It ends with exit code 1 if a kernel
differs or something failed, with 2 where it cannot begin, and with 3 where it was stuck when the time was up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from foveate.errors import FoveateError
from foveate.lab import terminal
from foveate.lab.bench import memory
from foveate.lab.bench.result import machine
from foveate.lab.devices import device_of

from gpu import models, speed
from gpu.agree import LAYERS, Agreement, kinds_for
from gpu.kernels import KERNELS, Kernel
from gpu.limits import Limit, synchronise, tried

PARTS = ("agreement", "speed")
BAD = ("differs", "failed")
#: Of the time: how much the kernels may take that are not compiled, and how much is there for speed after that.
FOR_KERNELS, FOR_SPEED = 0.35, 0.8
#: Seconds that something may go on after the time is up.
GRACE = 25.0
FULL = speed.Plan((1024, 4096, 16384), rounds=3, new_tokens=17, small=False)
REHEARSAL = speed.Plan((64, 144), rounds=2, new_tokens=3, small=True)


@dataclass
class Found:
    """What was found so far, and the file that always has all of it."""

    out: Path | None
    about: dict[str, Any]
    agreement: list[dict[str, Any]] = field(default_factory=list)
    speed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, part: str, what: dict[str, Any]) -> None:
        """Note one finding, and tell it."""
        getattr(self, part).append(what)
        print(_line(part, what), flush=True)
        self.write()

    def write(self) -> None:
        """The whole file or none of it."""
        if self.out is None:
            return
        text = json.dumps({**self.about, "agreement": self.agreement, "speed": self.speed}, indent=1, allow_nan=False)
        new = self.out.with_name(f".{self.out.name}.partial")
        new.write_text(text + "\n", encoding="utf-8")
        os.replace(new, self.out)

    @property
    def bad(self) -> int:
        """How many findings are none to be content with."""
        lines = [line for case in self.speed for line in case["lines"].values()]
        return sum(each["status"].startswith(BAD) for each in [*self.agreement, *self.speed, *lines])


def _line(part: str, what: dict[str, Any]) -> str:
    if part == "agreement":
        apart = f"{what['apart']:9.2e}" if "apart" in what else " " * 9
        return f"{what['model']:<14} {what['kernel']:<20} {what['batch']:<17} {what['answer']:<31} {apart} {what['status']}"
    lines = [f"{what['model']}, {what['layers']} layers, {what['visual']:,} visual tokens: {what['status']}"]
    for name, line in what["lines"].items():
        if "median" not in line:
            lines.append(f"    {name:<10} {line['status']}")
            continue
        times = line["median"]
        lines.append(
            f"    {name:<10} first {times['first']:8.3f} s, a token {times.get('decode', 0) * 1e3:7.2f} ms"
            + (f", memory {times['peak'] / 2**30:6.2f} GiB" if "peak" in times else "")
            + (f", first token {line['faster']['first']:.2f}x" if "faster" in line else "")
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Check:
    """What is checked, where, and for how long."""

    found: Found
    device: torch.device
    limit: Limit
    rehearse: bool
    kinds: list[str]

    def run(self, only: list[str]) -> None:
        """Kernels, then speed, then the kernels that are compiled, which take the longest; each as long as there is time."""
        compiled = tuple(kernel for kernel in KERNELS if kernel.attn == "flex_attention")
        others = tuple(kernel for kernel in KERNELS if kernel not in compiled)
        both = len(only) != 1
        if "speed" not in only or both:
            self._each("agreement", FOR_KERNELS if both else 0.6, partial(self._agree, others))
        if "agreement" not in only or both:
            self._each("speed", FOR_SPEED if both else 1.0, self._time)
        if "speed" not in only or both:
            self._each("agreement", 1.0, partial(self._agree, compiled))

    def _each(self, part: str, share: float, call: Callable[[str, Limit], dict[str, Any]]) -> None:
        """Call something for each model, with a share of the time that is left, which they share alike."""
        limit = self.limit.part(share)
        for number, shape in enumerate(models.SHAPES):
            of_model = limit.part(1 / (len(models.SHAPES) - number))
            said = tried(partial(call, shape, of_model), self.device)
            if "status" in said and part == "agreement":
                self.found.add(part, {"model": shape, "kernel": "all", "batch": "", "answer": "", **said})
            elif "status" in said:
                self.found.add(part, {"model": shape, "layers": 0, "visual": 0, **said, "lines": {}})
            synchronise(self.device)
            memory.give_back(self.device)

    def _agree(self, kernels: tuple[Kernel, ...], shape: str, limit: Limit) -> dict[str, Any]:
        add = partial(self.found.add, "agreement")
        Agreement(shape, self.device, self.rehearse, kinds_for(self.kinds), add).run(kernels, limit)
        return {}

    def _time(self, shape: str, limit: Limit) -> dict[str, Any]:
        plan = REHEARSAL if self.rehearse else FULL
        speed.measure(shape, plan, self.device, limit, partial(self.found.add, "speed"))
        return {}


def stop() -> None:
    """End a run that is stuck in the middle of something; the file has all that was found before."""
    print("the time was up in the middle of something", flush=True)
    os._exit(3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here")
    parser.add_argument("--seconds", type=float, default=570.0, help="after which nothing new is begun")
    parser.add_argument("--device", help="by default cuda; for a rehearsal cpu")
    parser.add_argument("--rehearse", action="store_true", help="small models")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--answer", action="append", help="a kind of answer; by default all")
    options = parser.parse_args()
    terminal.quiet_libraries()
    limit, began = Limit(options.seconds), time.monotonic()
    try:
        device = device_of(options.device or ("cpu" if options.rehearse else "cuda"))
        kinds_for(options.answer or [])
    except FoveateError as error:
        terminal.fail(error)
        return 2
    about = {"machine": machine(device), "rehearsal": options.rehearse, "agreement_layers": LAYERS}
    found = Found(options.out, {**about, "seconds": options.seconds})
    guard = threading.Timer(options.seconds + GRACE, stop)
    guard.daemon = True
    guard.start()
    Check(found, device, limit, options.rehearse, options.answer or []).run(options.only or [])
    guard.cancel()
    found.about["took"] = round(time.monotonic() - began, 1)
    found.write()
    print(f"{found.about['took']} s, {found.bad} bad", flush=True)
    return 1 if found.bad else 0


if __name__ == "__main__":
    sys.exit(main())
