"""What a step of decoding costs under a method, in times of a stock step.

    python benchmarks/decoding.py [--json FILE] [--pairs 60] [--layers 28] [--width 128] [--visual 64] [--long 4096]
    python benchmarks/decoding.py --profile 60 [--json FILE]

A Qwen2.5-VL with random weights, and a copy of it that has the method. Both write the same number of tokens with caches of
their own, one step of each in turn, A B B A ..., and a figure is the median of the ratios of neighbours, with its 95 % interval
(order statistics). There are so few visual tokens that a smaller cache cannot hide what a step costs beside it; ``--long``
asks the other question, from how many visual tokens on a step is faster than a stock one. ``--profile`` asks for one thing
alone: which share of so many steps is spent in the library's own functions, without those that they call.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
from pathlib import Path
from typing import Any

import torch
from scipy import stats

import foveate
from foveate import ADSC, LUVC, VTW, DyCoke, FastV, Method, Stride, V2Drop, VisionZip
from foveate.lab.bench import shapes
from foveate.lab.bench.result import machine
from foveate.lab.bench.steps import WARM, Writer, step_ratios, twin
from foveate.lab.bench.workload import Shaped

METHODS: dict[str, Method] = {
    "VisionZip": VisionZip(keep=0.5),
    "Stride": Stride(keep=0.5),
    "FastV": FastV(),
    "VTW": VTW(),
    "V2Drop": V2Drop(),
    "ADSC": ADSC(),
    "LUVC": LUVC(),
    "DyCoke": DyCoke(),
}


def compare(model: Any, batch: dict[str, torch.Tensor], method: Method, pairs: int, **how: Any) -> dict[str, Any]:
    """Ratios of neighbouring steps, those of the method over those of stock."""
    ratios = step_ratios(model, batch, method, pairs, **how)
    return {"method": method.to_dict(), "ratio": statistics.median(ratios), "interval": interval(ratios)}


def interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Order statistics between which the median is, with this confidence.

    Raises:
        ValueError: there are so few values that not even all of them reach it: below 6, for 95 %.
    """
    ordered, n = sorted(values), len(values)
    below = int(stats.binom.ppf((1 - level) / 2, n, 0.5)) - 1
    if below < 0:
        raise ValueError(f"{n} ratios have no {level:.0%} interval: measure more --pairs")
    return ordered[below], ordered[n - 1 - below]


def profiled(model: Any, batch: dict[str, torch.Tensor], method: Method, steps: int) -> float:
    """The share of so many steps that Python's profiler sees in the library's own functions.

    The profiler makes calls of Python slower and leaves torch's kernels as they are, so the share is too large, if anything.
    """
    own, profile = str(Path(foveate.__file__).parent), cProfile.Profile()
    theirs = twin(model)
    with foveate.compress(theirs, method):
        writer = Writer(theirs, batch)
        for _ in range(WARM):
            writer.seconds()
        profile.enable()
        for _ in range(steps):
            writer.seconds()
        profile.disable()
    seconds = {place: row[2] for place, row in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    ours = sum(spent for (file, _, _), spent in seconds.items() if file.startswith(own) and "/lab/" not in file)
    return float(ours / sum(seconds.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--visual", type=int, default=64)
    parser.add_argument(
        "--long", type=int, default=4096, help="visual tokens up to which a step becomes faster; 0: not asked"
    )
    parser.add_argument("--profile", type=int, default=0, help="steps; then nothing else is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="methods, separated by commas")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = shapes.qwen2_5_small(options.width, options.layers, blocks=2)
    model, prompts = shapes.build(config, torch.float32, torch.device("cpu"), None, seed=0), Shaped(config)

    def inputs(visual: int, rows: int = 1) -> dict[str, torch.Tensor]:
        return prompts.inputs(prompts.layout(visual), batch=rows, seed=0)

    chosen = {name: METHODS[name] for name in METHODS if not options.only or name in options.only.split(",")}
    shape = {k: getattr(options, k) for k in ("width", "layers", "visual", "pairs")}
    if options.profile:
        shares = {name: profiled(model, inputs(options.visual), each, options.profile) for name, each in chosen.items()}
        print("\n".join(f"{name:<10} {share:.2%}" for name, share in shares.items()))
        if options.json:
            methods = {name: method.to_dict() for name, method in chosen.items()}
            profile = {"machine": machine(torch.device("cpu")), "shape": shape, "methods": methods, "shares": shares}
            options.json.write_text(json.dumps(profile, indent=2) + "\n")
        return
    padded = inputs(options.visual, 3)
    padded["attention_mask"] = padded["attention_mask"].clone()
    for i in range(1, 3):  # rows of three lengths, as a processor pads them
        padded["attention_mask"][i, : 2 * i] = 0
    cases: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {
        "one row": (inputs(options.visual), {}),
        "three rows, padded": (padded, {}),
        "four beams": (inputs(options.visual), {"beams": 4}),
        "compiled": (inputs(options.visual), {"compiled": True}),
    }
    found: dict[str, dict[str, Any]] = {}
    for case, (batch, how) in cases.items():
        for name, method in chosen.items():
            if how.get("compiled") and name != "Stride":
                continue
            row = found.setdefault(case, {})[name] = compare(model, batch, method, options.pairs, **how)
            low, high = row["interval"]
            print(f"{case:<20} {name:<10} {row['ratio']:.3f} ({low:.3f} to {high:.3f})", flush=True)
    longer, visual = dict[int, dict[str, Any]](), options.visual
    while options.long and visual < options.long:
        visual *= 4
        row = longer[visual] = compare(model, inputs(visual), Stride(keep=0.25), options.pairs)
        low, high = row["interval"]
        print(f"{visual:>5} visual tokens, a quarter kept: {row['ratio']:.3f} ({low:.3f} to {high:.3f})", flush=True)
    if options.json:
        written = {"machine": machine(torch.device("cpu")), "shape": shape, "cases": found, "longer": longer}
        options.json.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
