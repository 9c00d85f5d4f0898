"""How fast methods are: each in a run of its own, beside the stock model, and beside `Stride` at equal cost on that shape."""

from __future__ import annotations

import json
from functools import cached_property, partial
from typing import Any

import torch

from foveate.dial import Dial
from foveate.handle import compress, host_of
from foveate.lab.asker import Cost
from foveate.lab.bench import plan, shapes, sweep
from foveate.lab.bench.request import Request
from foveate.lab.bench.result import DENSE
from foveate.lab.bench.summary import compare, spread
from foveate.lab.bench.workload import Shaped
from foveate.lab.evaluation.results import Spent
from foveate.lab.evaluation.store import file_stem
from foveate.lab.leaderboard.board import Row, Speed
from foveate.lab.leaderboard.request import Board
from foveate.method import Method
from foveate.methods import method_class, method_from_dict

Budget = tuple[str, float]
"""What is counted, and its share of the stock model's."""


class Timer:
    """A shape, with `Stride` at every budget on it."""

    def __init__(self, request: Board) -> None:
        self._request = request
        self._strides: dict[Budget, Method | None] = {}

    def __call__(self, rows: list[Row]) -> dict[Budget, Speed]:
        """Time one method at the budgets of its rows; without those that the shape cannot be set to.

        Raises:
            FoveateError: the method does not fit the shape.
        """
        method = method_from_dict(rows[0].method or {})
        budgets = [(row.by, row.budget) for row in rows if row.by is not None and row.budget is not None]
        ours = self._set(method, budgets)
        missing = [budget for budget in budgets if budget not in self._strides]
        self._strides |= self._set(method_class("stride")(), missing)
        pairs = {budget: (each, self._strides[budget]) for budget, each in ours.items() if each is not None}
        timed = {plan.label(each): each for pair in pairs.values() for each in pair if each is not None}
        if not timed:
            return {}
        request = Request(
            self._request.out / "speed" / f"{file_stem(rows[0].label)}.json",
            shapes=(self._request.shape,),
            described=tuple(json.dumps(each.to_dict()) for each in timed.values()),
            tokens=(self._request.tokens,),
            repeats=self._request.repeats,
            new_tokens=1,
            steps=0,
            device="cpu",
            overwrite=True,  # what was timed before is in the rows
        )
        request.out.parent.mkdir(exist_ok=True)
        found = sweep.run(request, lambda what, done: None)
        [case] = found.cases
        speeds = {}
        for budget, (each, stride) in pairs.items():
            label = plan.label(each)
            against = compare(case, label)
            if against is not None:
                times = [[times["first"] for times in case.lines[name].repeats] for name in (label, _label(stride))]
                ratios = [theirs / mine for mine, theirs in zip(*times)]
                spent = Spent(against.tokens / case.tokens, against.flops, against.kv)
                speeds[budget] = Speed(
                    against.speed["first"],
                    None if stride is None else spread(ratios),
                    spent,
                    f"{found.settings['cpu']}, {found.settings['threads']} threads",
                    sweep.command(request),
                )
        return speeds

    def _set(self, method: Method, budgets: list[Budget]) -> dict[Budget, Method | None]:
        """The method at each budget, by what it spends on the shape; None: it cannot spend that."""
        known: dict[str, Cost] = {}

        def share(tried: Method, by: str) -> float:
            name = json.dumps(tried.to_dict())
            if name not in known:
                known[name] = self._cost(tried)
            return known[name].share(by)

        found: dict[Budget, Method | None] = {}
        for by in dict.fromkeys(by for by, _ in budgets):
            dial = Dial(method, host_of(self._model), partial(share, by=by))
            for budget in (budget for other, budget in budgets if other == by):
                setting = dial.set(budget)
                found[by, budget] = setting.method if setting.reachable else None
        return found

    def _cost(self, method: Method) -> Cost:
        with compress(self._model, method) as handle, torch.inference_mode():
            self._model(**self._inputs, use_cache=True, logits_to_keep=1)
            return Cost.mean(handle.report(), 1)

    @cached_property
    def _model(self) -> Any:
        config = shapes.config_of(self._request.shape)
        return shapes.build(config, torch.float32, torch.device("cpu"), None, 0)

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        prompts = Shaped(self._model.config)
        return prompts.inputs(prompts.layout(self._request.tokens), 1, 0)


def said(request: Board) -> str:
    """What is timed, in words."""
    return f"{request.shape} with random weights, {request.tokens} visual tokens, {request.repeats} rounds, on a CPU"


def _label(method: Method | None) -> str:
    return DENSE if method is None else plan.label(method)
