"""How fast methods are on one device: time to the first token, time of the others, and memory, beside the stock model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import foveate
from foveate import ADSC, IPCV, LUVC, FastV, Method, Stride, VisionZip
from foveate.lab.bench import shapes
from foveate.lab.bench.measure import Inputs, timed
from foveate.lab.bench.workload import Shaped

from gpu import models
from gpu.kernels import fastest
from gpu.limits import TIME_IS_UP, Limit, tried

DENSE = "dense"
METHODS: dict[str, Method | None] = {
    DENSE: None,
    "LUVC": LUVC(),
    "ADSC": ADSC(),
    "IPCV": IPCV(),
    "FastV": FastV(),
    "VisionZip": VisionZip(),
    "Stride": Stride(keep=0.5),
}
STAGES = ("tower", "prefill", "first", "decode")


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        sizes: visual tokens of a prompt, about.
        rounds: in each of them the stock model and every method run once, one after another, each round in another order.
        new_tokens: that a call generates.
        small: widths for a CPU.
    """

    sizes: tuple[int, ...]
    rounds: int
    new_tokens: int
    small: bool


@dataclass
class Line:
    """The stock model or one method at one size."""

    method: Method | None
    status: str = "measured"
    about: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        said = None if self.method is None else self.method.to_dict()
        return {"method": said, "status": self.status, **self.about, "rounds": self.rounds}


def measure(shape: str, plan: Plan, device: torch.device, limit: Limit, add: Callable[[Any], None]) -> None:
    """One model at all sizes; ``add`` gets a case when it is done, or why there is none."""
    dtype, attn = torch.bfloat16 if device.type == "cuda" else torch.float32, fastest(device)
    layers = 0 if plan.small else models.fitting(shape, dtype, device, max(plan.sizes))
    config = models.config_of(shape, layers, small=plan.small)
    about = {"model": shape, "layers": config.text_config.num_hidden_layers, "attn": attn, "dtype": str(dtype)[6:]}
    built: dict[str, Any] = {}

    def build() -> dict[str, Any]:
        built["model"] = shapes.build(config, dtype, device, attn, seed=0)
        return {"status": "built"}

    said = tried(build, device)
    for size in plan.sizes:
        layout = Shaped(config).layout(size)
        case = {**about, "visual": layout.tokens, "images": layout.images}
        if "model" not in built or limit.left < 0:
            add({**case, "status": said["status"] if "model" not in built else TIME_IS_UP, "lines": {}})
            continue
        inputs = models.moved(Shaped(config).inputs(layout, 1, seed=0), built["model"])
        lines, status = _case(built["model"], inputs, plan, device, limit)
        add(
            {
                **case,
                "status": status,
                "lines": {name: line.plain() | ratios(lines, name) for name, line in lines.items()},
            }
        )


def _case(model: Any, inputs: Inputs, plan: Plan, device: torch.device, limit: Limit) -> tuple[dict[str, Line], str]:
    """All methods at one size: a call each to warm up, which says what the method leaves, then rounds."""
    lines = {name: Line(method) for name, method in METHODS.items()}
    took = 0.0
    for line in lines.values():
        start = time.monotonic()
        if limit.left < took:
            line.status = TIME_IS_UP
            continue
        line.about = tried(partial(_look, model, inputs, line.method, plan.new_tokens), device)
        line.status = line.about.pop("status", "measured")
        took = max(took, time.monotonic() - start)
    for number in range(plan.rounds):
        start = time.monotonic()
        order = [name for name, line in lines.items() if line.status == "measured"]
        if not order or limit.left < took * len(order):
            return lines, f"{number} of {plan.rounds} rounds: the time was up" if order else "measured"
        found = {}
        for name in _turned(order, number):
            found[name] = tried(partial(timed, model, inputs, METHODS[name], plan.new_tokens), device)
            if "status" in found[name]:
                lines[name].status = found.pop(name)["status"]
        for name, times in found.items():
            lines[name].rounds.append(times)
        took = (time.monotonic() - start) / len(order)
    return lines, "measured"


def _look(model: Any, inputs: Inputs, method: Method | None, new_tokens: int) -> dict[str, Any]:
    """What a method leaves; the call warms up what is timed afterwards."""
    if method is None:
        timed(model, inputs, None, new_tokens)
        return {}
    with foveate.compress(model, method) as handle:
        with torch.inference_mode():
            model.generate(
                **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0
            )
        report = handle.report()
    return {"tokens": report.mean_tokens, "flops": report.flops_ratio, "kv": report.kv_ratio}


def ratios(lines: dict[str, Line], name: str) -> dict[str, Any]:
    """Medians of a line's times; and of how many times as fast as the stock model it was, round by round."""
    own, stock = lines[name].rounds, lines[DENSE].rounds
    if not own:
        return {}
    found: dict[str, Any] = {"median": {key: statistics.median(each[key] for each in own) for key in own[0]}}
    if name != DENSE and len(stock) == len(own):
        faster = {key: [a[key] / b[key] for a, b in zip(stock, own)] for key in STAGES if key in own[0]}
        found["faster"] = {key: statistics.median(values) for key, values in faster.items()}
        if "peak" in own[0]:
            found["memory"] = statistics.median(b["peak"] / a["peak"] for a, b in zip(stock, own))
    return found


def _turned(order: list[str], number: int) -> list[str]:
    """Another name is first in every round, and every second round runs backwards."""
    step = -1 if number % 2 else 1
    return [order[(number + step * place) % len(order)] for place in range(len(order))]
