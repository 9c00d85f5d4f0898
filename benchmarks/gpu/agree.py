"""Whether kernels agree: what a model says with each of them, for every kind of answer, and what with the plain one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import foveate
from foveate import Method
from foveate.lab.bench import shapes
from foveate.lab.checks import check_choice

from gpu import models
from gpu.answers import Script, answers
from gpu.kernels import PLAIN, Kernel
from gpu.limits import TIME_IS_UP, Limit, tried

LAYERS, BLOCKS, STEPS = 6, 4, 3
#: How much more than the stock model's a method's difference between two kernels may be, and what no kernel is better than, in
#: units of the last place: sums of fewer tokens round otherwise, not worse.
SLACK, PLACES = 5.0, 4.0


@dataclass(frozen=True)
class Batch:
    """What a model is asked: a prompt, and tokens that it then reads one by one."""

    name: str
    inputs: dict[str, Tensor]


def batches(config: Any, small: bool) -> list[tuple[str, dict[str, Tensor]]]:
    """One row, which no kernel needs a mask for, and two of different lengths."""
    few, many = (16, 72) if small else (256, 1200)
    return [
        ("one row", models.ragged(config, [many], seed=0)),
        ("two rows, padded", models.ragged(config, [few, many], seed=1)),
    ]


@torch.inference_mode()
def said(model: Any, batch: Batch) -> Tensor:
    """Logits ``(rows, V)`` of the text of a prompt, and of the steps after it, in fp32."""
    inputs, mask = batch.inputs, batch.inputs["attention_mask"]
    text = (inputs["input_ids"] != model.config.image_token_id) & mask.bool()
    out = model(**inputs, use_cache=True)
    found, cache, rows = [out.logits[text].float()], out.past_key_values, len(mask)
    for step in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(rows, 1)], 1)
        more: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
        if "image_grid_thw" in inputs:
            more["position_ids"] = torch.full((3, rows, 1), mask.shape[1], device=mask.device)
        token = torch.full((rows, 1), 20 + step, device=mask.device)
        found.append(model(input_ids=token, **more).logits[:, -1].float())
    return torch.cat(found)


def difference(one: Tensor, other: Tensor) -> float:
    """How far two sets of logits are apart, in lengths of the second."""
    if not bool(one.isfinite().all()):
        raise ArithmeticError("some logits are no finite numbers")
    return float((one - other).norm() / other.norm())


@dataclass
class Plain:
    """What a model says with the plain kernel: alone, and with each method, whose answers are noted."""

    stock: Tensor
    said: dict[str, Tensor]
    scripts: dict[str, Script]


class Agreement:
    """One model with all kernels."""

    def __init__(
        self, shape: str, device: torch.device, small: bool, kinds: dict[str, Method], add: Callable[[Any], None]
    ) -> None:
        self.shape, self.device, self.kinds, self.add = shape, device, kinds, add
        config = models.config_of(shape, LAYERS, BLOCKS, small)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = shapes.build(config, dtype, device, PLAIN, seed=0)
        self.batches = [Batch(name, models.moved(made, self.model)) for name, made in batches(config, small)]
        self.plain: dict[str, Plain] = {}

    def run(self, kernels: tuple[Kernel, ...], limit: Limit) -> None:
        """Every kernel in turn: all kinds of answers in both batches."""
        for kernel in kernels:
            if reason := kernel.why_not(self.model):
                self._note(kernel, "", "", {"status": reason})
                continue
            for batch in self.batches:
                self._kernel(kernel, batch, limit)

    def _kernel(self, kernel: Kernel, batch: Batch, limit: Limit) -> None:
        stock: dict[str, Any] = {}
        for kind, method in {"(stock)": None, **self.kinds}.items():
            if limit.left < 0:
                self._note(kernel, batch.name, kind, {"status": TIME_IS_UP})
                continue
            found = tried(partial(self._compare, kernel, batch, kind, method, stock), self.device)
            if method is None:
                stock = found
            self._note(kernel, batch.name, kind, found)

    def _note(self, kernel: Kernel, batch: str, kind: str, found: dict[str, Any]) -> None:
        self.add({"model": self.shape, "kernel": kernel.name, "batch": batch, "answer": kind, **found})

    def _compare(
        self, kernel: Kernel, batch: Batch, kind: str, method: Method | None, stock: dict[str, Any]
    ) -> dict[str, Any]:
        plain = self._plain(batch)
        if method is None:
            self.model.set_attn_implementation(kernel.attn)
            with kernel.forced():
                apart = difference(said(self.model, batch), plain.stock)
            return {"status": "measured", "apart": apart}
        self._write(batch, kind, method, plain)
        script = plain.scripts[kind]
        self.model.set_attn_implementation(kernel.attn)
        with kernel.forced(), foveate.compress(self.model, method), script.followed(method):
            apart = difference(said(self.model, batch), plain.said[kind])
        floor = PLACES * torch.finfo(self.model.dtype).eps
        most = max(SLACK * stock.get("apart", 0.0), floor)
        return {
            "status": "agrees" if apart <= most else "differs",
            "apart": apart,
            "at_most": most,
            "changes": difference(plain.said[kind], plain.stock),
            "asked": script.asked,
            "alike": script.alike,
        }

    def _plain(self, batch: Batch) -> Plain:
        if batch.name not in self.plain:
            self.model.set_attn_implementation(PLAIN)
            self.plain[batch.name] = Plain(said(self.model, batch), {}, {})
        return self.plain[batch.name]

    def _write(self, batch: Batch, kind: str, method: Method, plain: Plain) -> None:
        """What the model says with the plain kernel, once."""
        if kind in plain.said:
            return
        self.model.set_attn_implementation(PLAIN)
        script = Script()
        with foveate.compress(self.model, method), script.written(method):
            found = said(self.model, batch)
        plain.said[kind], plain.scripts[kind] = found, script


def kinds_for(names: list[str]) -> dict[str, Method]:
    """Kinds of answers by name; by default all."""
    every = answers()
    for name in names:
        check_choice("answer", name, every)
    return {kind: every[kind] for kind in names or every}
