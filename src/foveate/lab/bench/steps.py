"""Steps of decoding in pairs: one of the stock model and one of a method, in turn, each with a cache of its own."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from foveate.handle import compress
from foveate.lab.bench.measure import Inputs
from foveate.method import Method

WARM = 5  # the first steps warm up


class Writer:
    """A model that writes an answer, step by step, the first word after the prompt."""

    def __init__(self, model: Any, inputs: Inputs, beams: int = 1, compiled: bool = False) -> None:
        self.device, self.beams = model.device, beams
        with torch.inference_mode():
            out = model(**inputs, use_cache=True, logits_to_keep=1)
        self.cache, self.mask = out.past_key_values, inputs["attention_mask"]
        if beams > 1:
            self.cache.batch_repeat_interleave(beams)
            self.mask = self.mask.repeat_interleave(beams, 0)
        self.token = out.logits[:, -1:].argmax(-1).repeat_interleave(beams, 0)
        self.step = torch.compile(model, dynamic=True) if compiled else model
        self.by_grid = any(
            name.endswith("grid_thw") for name in inputs
        )  # such models number a bare step by the whole mask

    def seconds(self) -> float:
        """Time of the next step; with beams, that of choosing rows, too."""
        rows = torch.arange(len(self.token), device=self.device).roll(1)
        self._wait()
        start = time.perf_counter()
        with torch.inference_mode():
            if self.beams > 1:
                self.cache.reorder_cache(rows)
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
            more = dict[str, Any]()
            if self.by_grid:
                more["position_ids"] = torch.full((3, len(self.token), 1), self.mask.shape[1], device=self.device)
            out = self.step(
                input_ids=self.token,
                attention_mask=self.mask,
                past_key_values=self.cache,
                use_cache=True,
                **more,
            )
        self._wait()
        spent = time.perf_counter() - start
        self.token = out.logits[:, -1:].argmax(-1)
        return spent

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def twin(model: Any) -> Any:
    """A second model with the weights of the first one, which take no memory of their own."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def step_ratios(model: Any, inputs: Inputs, method: Method, pairs: int, **how: Any) -> list[float]:
    """The time of a step under a method over that of a stock step right before or after it, for so many ``pairs``.

    ``how`` says how the `Writer` of either calls its model.
    """
    theirs = twin(model)
    with compress(theirs, method):
        stock, ours = Writer(model, inputs, **how), Writer(theirs, inputs, **how)
        for writer in (
            stock,
            ours,
        ):  # one after the other: code compiled for both in turn asks each time for which it is
            for _ in range(WARM):
                writer.seconds()
        ratios = []
        for pair in range(pairs):  # A B B A: neither side is always the later one
            if pair % 2:
                before, after = stock.seconds(), ours.seconds()
            else:
                after, before = ours.seconds(), stock.seconds()
            ratios.append(after / before)
    return ratios
