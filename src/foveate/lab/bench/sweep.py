"""The run: every case in rounds, and in every round the stock model and every method once, in turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from foveate.handle import compress
from foveate.lab import outputs, typed
from foveate.lab.bench import memory, plan, shapes
from foveate.lab.bench.measure import Inputs, probe, timed
from foveate.lab.bench.request import Request, check
from foveate.lab.bench.result import DENSE, Case, Line, Result, machine, read, resume
from foveate.lab.bench.steps import step_ratios
from foveate.lab.bench.workload import TEXT, Layout, Processed, Shaped
from foveate.lab.devices import device_of, is_out_of_memory
from foveate.lab.loading import DTYPES, load
from foveate.lab.terminal import CommandError
from foveate.method import Method

Tell = Callable[[str, float], None]
Methods = dict[str, Method | None]


def run(request: Request, tell: Tell) -> Result:
    """Measure, or go on measuring, or only read what was measured; the file of the result is whole after every round.

    ``tell`` gets what happens now and the share of the work that is done.

    Raises:
        FoveateError: something in the request is wrong; nothing has been measured then.
    """
    check(request)
    if request.source is not None:
        return read(request.source)
    methods = plan.contenders(request)
    device = device_of(request.device)
    if request.overwrite:
        outputs.clear(request.out.parent, [request.out.name])
    result = resume(request.out, _settings(request, methods, device), command(request))
    if result.ended == result.command:
        return result
    for name in request.names:
        if name in shapes.SHAPES:
            _check_shape(name, request, methods, device)
    total = len(request.names)
    for number, name in enumerate(request.names):

        def share(what: str, done: float, number: int = number, name: str = name) -> None:
            tell(f"{name}: {what}", (number + done) / total)

        share("making the model", 0.0)
        _measure(name, request, methods, device, result, share)
    result.ended = result.command
    result.write(request.out)
    tell("done", 1.0)
    return result


def command(request: Request) -> str:
    """The command line that repeats the run, but for its files."""
    return typed.command("foveate bench", replace(request, plot=None, table=None))


class Subject:
    """A model, which is built when it is asked for, and what makes prompts for it."""

    def __init__(self, name: str, prompts: Shaped | Processed, make: Callable[[], Any]) -> None:
        self.name, self.prompts, self._make = name, prompts, make

    @cached_property
    def model(self) -> Any:
        try:
            return self._make()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        raise CommandError(
            f"{self.name} does not fit into the memory that is free: choose another model, --dtype or --device"
        )


def _measure(name: str, request: Request, methods: Methods, device: torch.device, result: Result, tell: Tell) -> None:
    """All cases of one model."""
    subject = _subject(name, request, methods, device)
    tell("choosing the images", 0.0)
    layouts = {layout.tokens: layout for layout in map(subject.prompts.layout, request.tokens)}
    sizes = [(layout, batch) for layout in layouts.values() for batch in request.batches]
    whole, done = sum(layout.tokens * batch for layout, batch in sizes), 0
    for layout, batch in sizes:
        weight, what = layout.tokens * batch, f"{layout.tokens:,} visual tokens, batch {batch}"

        def share(text: str, part: float, done: int = done, weight: int = weight, what: str = what) -> None:
            tell(f"{what}: {text}", (done + part * weight) / whole)

        _case(subject, layout, batch, request, methods, result, share)
        done += weight


def _case(
    subject: Subject, layout: Layout, batch: int, request: Request, methods: Methods, result: Result, tell: Tell
) -> None:
    """One case: what each call costs, a call to warm up, and the rounds and the pairs of steps that are not there yet."""
    inputs: Inputs = subject.prompts.inputs(layout, batch, request.seed)
    lines = {label: Line(None if method is None else method.to_dict()) for label, method in methods.items()}
    text = inputs["input_ids"].shape[1] - layout.tokens
    case = result.case(Case(subject.name, layout.tokens, batch, layout.images, list(layout.size), text, lines))
    paired = [label for label in methods if methods[label] is not None and len(case.lines[label].steps) < request.steps]
    left = case.rounds < request.repeats or any(case.lines[label].error is None for label in paired)
    if not left or all(line.error for line in case.lines.values()):
        return
    model = subject.model
    case.dtype, case.attn = str(model.dtype).removeprefix("torch."), model.config._attn_implementation
    inputs = {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None) for key, value in inputs.items()
    }
    for number, (label, line) in enumerate(case.lines.items()):
        tell(f"looking at {label}", number / len(lines) / (request.repeats + 2))
        _look(model, inputs, methods[label], line, request.new_tokens)
    result.write(request.out)
    order = [label for label, line in case.lines.items() if line.error is None]
    random.Random(request.seed).shuffle(order)
    for number in range(case.rounds, request.repeats if order else 0):
        found = {}
        for place, label in enumerate(_turned(order, number)):
            if case.lines[label].error is not None:  # in a round before
                continue
            done = number + 2 + place / len(order)  # looking and warming up took about two rounds
            tell(f"round {number + 1} of {request.repeats}, {label}", done / (request.repeats + 2))
            times = _tried(case.lines[label], timed, model, inputs, methods[label], request.new_tokens)
            if times is not None:
                found[label] = times
        for label, times in found.items():
            case.lines[label].repeats.append(times)
        result.write(request.out)
    for label in paired:
        line, method = case.lines[label], methods[label]
        if line.error is None and case.lines[DENSE].error is None and method is not None:
            tell(f"steps of {label}", 1.0)
            line.steps = _steps(model, inputs, method, request.steps)
            result.write(request.out)


def _look(model: Any, inputs: Inputs, method: Method | None, line: Line, new_tokens: int) -> None:
    """Fill in the probe, and warm up."""
    if line.probe is None and line.error is None:
        line.probe = _tried(line, probe, model, inputs, method, new_tokens)
    if line.probe is None:
        return
    warm = _tried(line, timed, model, inputs, method, new_tokens)
    if warm is not None and "peak" in warm:
        line.probe["peak"] = warm["peak"]


def _tried(line: Line, call: Callable[..., dict[str, Any]], model: Any, *words: Any) -> dict[str, Any] | None:
    """What ``call`` finds. That there is not enough memory for it is a finding of the line, too, and the others go on."""
    try:
        return call(model, *words)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    line.probe, line.error = None, "out of memory"
    memory.give_back(model.device)
    return None


def _steps(model: Any, inputs: Inputs, method: Method, pairs: int) -> list[float]:
    """Pairs of steps; none where two caches at once are more than there is memory for."""
    try:
        return step_ratios(model, inputs, method, pairs)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    memory.give_back(model.device)
    return []


def _turned(order: list[str], number: int) -> list[str]:
    """Another label is first in every round, and every second round runs backwards."""
    step = -1 if number % 2 else 1
    return [order[(number + step * place) % len(order)] for place in range(len(order))]


def _subject(name: str, request: Request, methods: Methods, device: torch.device) -> Subject:
    if name in shapes.SHAPES:
        config, dtype = shapes.config_of(name), _dtype(request, device)
        return Subject(name, Shaped(config), lambda: shapes.build(config, dtype, device, request.attn, request.seed))
    model, processor = load(name, request.dtype, request.attn)
    _check_attention(request.attn, model.dtype)
    _check_methods(model, methods)
    return Subject(name, Processed(name, model.config, processor), lambda: model.to(device))


def _check_methods(model: Any, methods: Methods) -> None:
    """Raise an error that says which method does not fit the model, if one does not."""
    for method in methods.values():
        if method is not None:
            compress(model, method).remove()


def _dtype(request: Request, device: torch.device) -> torch.dtype:
    """Of a shape."""
    return DTYPES.get(request.dtype, torch.float32 if device.type == "cpu" else torch.bfloat16)


def _check_shape(name: str, request: Request, methods: Methods, device: torch.device) -> None:
    """What can be known before anything is allocated: whether the methods fit the model, and the model the memory."""
    skeleton, dtype = shapes.skeleton(name), _dtype(request, device)
    _check_attention(request.attn, dtype)
    _check_methods(skeleton, methods)
    longest = (
        max(Shaped(skeleton.config).layout(tokens).tokens for tokens in request.tokens) + TEXT + request.new_tokens
    )
    memory.check_fit(name, skeleton, max(request.batches) * longest, dtype, device)


def _check_attention(attn: str | None, dtype: torch.dtype) -> None:
    """Raise `CommandError` for FlashAttention in float32, which its kernels find out in the middle of a call."""
    if dtype == torch.float32 and "flash_att" in (attn or "").replace("-", "_"):
        raise CommandError(f"--attn {attn!r} needs --dtype bfloat16 or float16")


def _settings(request: Request, methods: Methods, device: torch.device) -> dict[str, Any]:
    """What all measurements of a file have in common."""
    described = {label: None if method is None else method.to_dict() for label, method in methods.items()}
    own = {"methods": described, "new_tokens": request.new_tokens, "seed": request.seed, "dtype": request.dtype}
    return {**own, "attn": request.attn, **machine(device)}
