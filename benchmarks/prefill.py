"""How much of the ideal a reduced prefill realises, and where the rest goes.

    python benchmarks/prefill.py [--json FILE] [--rounds 4] [--width 512] [--layers 4] [--visual 1024 --visual 4096 ...]

A Qwen2.5-VL with random weights, fp32, images of 1,024 tokens; of more than 8,192 its language model is 128 wide. The
ideal is a language model whose every layer takes the time of a stock layer with as many tokens: the stock model is run at the
lengths that the method's layers have, in turn with the method. Each figure is made of the least time of every run, as others
on the machine can only add to it. Times are CPU seconds of one thread. Parts are what the library's functions take, without
those that they call. Of mergers in a vision tower of 32 blocks, of which every fourth has full attention, it says what is
gained by where they act; the ideal of these is their share of its FLOPs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate import ADSC, IPCV, LUVC, OIM, Method, Stride
from foveate.lab.bench import shapes
from foveate.lab.bench.result import machine
from foveate.lab.bench.workload import Shaped
from foveate.runtime import decoder
from foveate.runtime.arguments import LayerArguments
from foveate.runtime.context import Action
from foveate.runtime.decoder import DecoderHooks
from foveate.runtime.entry import Entry
from foveate.runtime.layout import Rows

CPU = torch.device("cpu")
#: Where time of our own goes: functions, by what they are there for.
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "finds": ((Entry, "arrive"),),
    "chooses": ((Action, "decide"),),
    "gathers": ((Rows, "reduce"), (decoder, "take_rows"), (Rows, "put"), (Rows, "pick")),
    "arguments": ((LayerArguments, "derive"), (LayerArguments, "advance")),
    "scatters": ((Rows, "scatter"),),
    "hooks": tuple((DecoderHooks, name) for name in ("_begin", "_before_layer", "_before_norm", "_end")),
}


class Clock:
    """CPU time of this thread in each part, and in the language model."""

    def __init__(self) -> None:
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.language = 0.0
        self._inside: list[float] = []  # what was spent in parts within each part that runs now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time counts for ``part``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - start
                self.parts[part] += spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every part is timed."""
        stock = [(owner, name, getattr(owner, name)) for of_part in PARTS.values() for owner, name in of_part]
        for part, functions in PARTS.items():
            for owner, name in functions:
                setattr(owner, name, self.timed(part, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, function in stock:
                setattr(owner, name, function)


def mergers(blocks: int) -> dict[str, Method]:
    """Mergers that hand over a share of the tokens, from a block on, in two passes; and what IPCV does in place of merging."""

    def at(part: float, share: float) -> Method:
        block, each = int(part * blocks), share**0.5
        return OIM(passes=((block, "width", each), (block, "height", each)))

    named = {(part, share): at(part, share) for share in (0.8, 0.5) for part in (0.75, 0.5, 0.25, 0.0)}
    return {f"{share:.0%} from {part:.0%} of the blocks": method for (part, share), method in named.items()} | {
        "IPCV": IPCV()
    }


def seconds(part: Any, call: Callable[[], Any]) -> float:
    """CPU time of a part of the model in a call, with all that hooks do there."""
    ticks = list[float]()
    hooks = [
        part.register_forward_pre_hook(lambda *_: ticks.append(time.thread_time()), prepend=True),
        part.register_forward_hook(lambda *_: ticks.append(time.thread_time())),
    ]
    with torch.inference_mode():
        call()
    for hook in hooks:
        hook.remove()
    return ticks[1] - ticks[0]


def stock(model: Any, length: int) -> float:
    """Time of the stock language model with so many tokens."""
    x = torch.randn(1, length, model.config.text_config.hidden_size)
    given = dict(attention_mask=torch.ones(1, length, dtype=torch.long), use_cache=True)
    places = torch.arange(length).expand(3, 1, length)
    language = model.model.language_model
    return seconds(language, lambda: language(inputs_embeds=x, position_ids=places, **given))


def compare(model: Any, batch: dict[str, torch.Tensor], method: Method, rounds: int) -> dict[str, Any]:
    """A method and the stock model at its lengths, in turn; the least of each."""
    full = int(batch["input_ids"].shape[1])

    def ours(clock: Clock | None = None) -> tuple[float, Any]:
        # (hooks are bound when the method is attached)
        with nullcontext() if clock is None else clock.watching(), foveate.compress(model, method) as handle:
            return seconds(model.model.language_model, lambda: model(**batch, logits_to_keep=1)), handle.report()

    _, report = ours()  # warms up
    held = report.layer_tokens
    at = {length: list[float]() for length in sorted({full, *held})}
    times, clocks = list[float](), list[Clock]()
    for _ in range(rounds):
        times.append(ours()[0])
        for length, found in at.items():
            found.append(stock(model, length))
        clock = Clock()
        clock.language = ours(clock)[0]
        clocks.append(clock)
    least = {length: min(found) for length, found in at.items()}
    ideal = sum(least[length] for length in held) / len(held)
    parts = {part: min(clock.parts[part] for clock in clocks) / min(times) for part in PARTS}
    prefill = report.flops["prefill"] / report.full_flops["prefill"]
    return {
        "method": method.to_dict(),
        "tokens_per_layer": held,
        "stock_seconds": least[full],
        "speed_up": least[full] / min(times),
        "ideal_speed_up": least[full] / ideal,
        "by_flops": 1 / prefill,
        "realised_over_ideal": ideal / min(times),
        "parts": parts,
    }


def tower(model: Any, batch: dict[str, torch.Tensor], method: Method, rounds: int) -> dict[str, Any]:
    """A method in the vision tower and the stock tower, in turn; the least of each."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds + 1):  # the first round warms up
        for ours in times:
            handle = foveate.compress(model, method) if ours else None
            times[ours].append(seconds(model.model.visual, lambda: model(**batch, logits_to_keep=1)))
            if handle is not None:
                report = handle.report()
                handle.remove()
    left = (report.flops["tower"] + report.flops["sites"]) / report.full_flops["tower"]
    speed = min(times[False]) / min(times[True])
    return {"method": method.to_dict(), "flops": left, "speed_up": speed, "realised_over_ideal": speed * left}


def run(visual: int, options: argparse.Namespace) -> dict[str, Any]:
    """All cases at so many visual tokens, long prompts in a narrow model and in fewer rounds."""
    long = visual > 8192
    width, layers = (128, 3) if long else (options.width, options.layers)
    rounds = max(1, options.rounds // (1 if visual <= 1024 else 4 if long else 2))
    config = shapes.qwen2_5_small(width, layers, blocks=2)  # a tower that hardly counts
    model, prompts = shapes.build(config, torch.float32, CPU, None, seed=0), Shaped(config)
    images, third, rows = max(1, visual // 1024), layers // 3, {}
    one = prompts.layout(visual // images)
    layout = replace(one, tokens=images * one.tokens, images=images)
    batch = prompts.inputs(layout, batch=1, seed=0)
    cases: dict[str, Method] = {
        "Stride, half before layer 0": Stride(keep=0.5),
        "Stride, half at 1/3 and again at 2/3": Stride(ratio=0.5, layers=(third, 2 * third)),
        "LUVC": LUVC(),
        "IPCV": IPCV(),
        "ADSC": ADSC(),
    }
    for name, method in cases.items():
        rows[name] = row = compare(model, batch, method, rounds)
        shares = " ".join(f"{part} {share:.2%}" for part, share in row["parts"].items())
        print(
            f"{layout.tokens} tokens, {name}: {row['speed_up']:.2f} of {row['ideal_speed_up']:.2f} "
            f"({row['realised_over_ideal']:.3f}), by FLOPs {row['by_flops']:.2f}; {shares}",
            flush=True,
        )
    return {
        "visual": layout.tokens,
        "images": images,
        "width": width,
        "layers": layers,
        "rounds": rounds,
        "cases": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--visual", type=int, action="append", help="repeatable; default: 1024, 4096 and 16384")
    parser.add_argument("--patches", type=int, default=4096, help="of the tower's image; 0: no tower")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run(visual, options) for visual in options.visual or [1024, 4096, 16384]]
    merged = {}
    if options.patches:
        config = shapes.qwen2_5_small(128, 2, tower=128, blocks=32)
        model, prompts = shapes.build(config, torch.float32, CPU, None, seed=0), Shaped(config)
        batch = prompts.inputs(prompts.layout(options.patches // 4), batch=1, seed=0)
        for name, method in mergers(32).items():
            merged[name] = row = tower(model, batch, method, max(1, options.rounds // 4))
            print(f"tower, {name}: {row['speed_up']:.2f}, FLOPs {row['flops']:.2f}", flush=True)
    if options.json:
        found = {"machine": machine(CPU), "patches": options.patches, "runs": runs, "tower": merged}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
