"""What the hooks cost when nothing is removed, and how much of the ideal speed-up arrives when half is.

    python benchmarks/overhead.py [--json FILE] [--pairs N] [--width 1024] [--layers 6] [--visual 1024] [--threads 2]

A Qwen2.5-VL with random weights (fine for speed, never for accuracy). Stock and compressed forwards alternate in one
process, A B B A ..., and every figure is the median of the ratios of neighbours, because absolute times drift. Ideal is
the ratio of the FLOPs; realised is the ratio of the times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate import Method, Stride
from foveate.lab.bench import shapes
from foveate.lab.bench.result import machine
from foveate.lab.bench.workload import Shaped


def seconds(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """Time of one forward."""
    start = time.perf_counter()
    with torch.inference_mode():
        model(**batch, logits_to_keep=1)
    return time.perf_counter() - start


def compare(model: Any, batch: dict[str, torch.Tensor], method: Method, pairs: int) -> dict[str, Any]:
    """Stock and compressed forwards in turn; ratios of neighbours."""
    ratios, stock_times = [], []
    for pair in range(pairs + 1):
        stock = seconds(model, batch) if pair % 2 else 0.0  # A B B A: neither side is always the later one
        with foveate.compress(model, method) as handle:
            ours = seconds(model, batch)
            report = handle.report()
        stock = stock or seconds(model, batch)
        if pair:  # the first pair warms up
            ratios.append(stock / ours)
            stock_times.append(stock)
    ideal = 1 / report.flops_ratio
    realised = statistics.median(ratios)
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "method": method.to_dict(),
        "tokens_per_layer": report.layer_tokens,
        "ideal_speed_up": ideal,
        "speed_up": realised,
        "speed_up_quartiles": [quartiles[0], quartiles[2]],
        "realised_over_ideal": realised / ideal,
        "stock_seconds": statistics.median(stock_times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--visual", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cpu = torch.device("cpu")
    config = shapes.qwen2_5_small(options.width, options.layers, blocks=2)  # a tower that hardly counts
    model, prompts = shapes.build(config, torch.float32, cpu, None, seed=0), Shaped(config)
    batch = prompts.inputs(prompts.layout(options.visual), batch=1, seed=0)
    third = options.layers // 3
    cases = {
        "keep = 1": Stride(ratio=1.0, layers=(0, third, 2 * third)),
        "keep = 0.5 before layer 0": Stride(keep=0.5),
        "keep = 0.5 at 1/3 and 2/3 of the depth": Stride(ratio=0.5, layers=(third, 2 * third)),
    }
    rows = {}
    for name, method in cases.items():
        rows[name] = row = compare(model, batch, method, options.pairs)
        low, high = row["speed_up_quartiles"]
        print(
            f"{name:<40} speed-up {row['speed_up']:.3f} ({low:.3f} to {high:.3f}), ideal {row['ideal_speed_up']:.3f}, "
            f"realised/ideal {row['realised_over_ideal']:.3f}"
        )
    overhead = 1 / rows["keep = 1"]["speed_up"] - 1
    print(f"hooks cost {overhead:+.1%} of a forward when nothing is removed")
    if options.json:
        shape = {k: getattr(options, k) for k in ("width", "layers", "visual", "pairs")}
        found = {"machine": machine(cpu), "shape": shape, "cases": rows}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
