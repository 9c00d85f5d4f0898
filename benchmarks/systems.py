"""What LUVC, IPCV and ADSC save: time of prefill, vision tower and decoding, KV cache, peak memory; and how near the ideal.

    python benchmarks/systems.py [--json FILE] [--images 1 --images 4] [--pairs 5] [--threads 2]

A Qwen2.5-VL with random weights, fp32; every image has ``--visual`` tokens. Stock and compressed runs alternate in one
process, and every figure is the median of the ratios of neighbours. The ideal time of the language model is the sum over its
layers of the stock layer's time at that layer's number of tokens; that of the tower is its share of FLOPs. Peak memory is
that of all tensors which a call makes, counted as they are made and freed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate import ADSC, IPCV, LUVC, SPU, Method, Stride
from foveate.lab.bench import shapes
from foveate.lab.bench.measure import probe, timed
from foveate.lab.bench.result import machine
from foveate.lab.bench.workload import Shaped

from tables import speed as tables

NEW = 9  # tokens that are generated
CPU = torch.device("cpu")
STAGES = ("tower", "prefill", "first", "decode")
CASES: dict[str, Method] = {
    "Stride(keep=0.5)": Stride(keep=0.5),
    "SPU()": SPU(),
    "LUVC()": LUVC(),
    "ADSC()": ADSC(),
    "IPCV()": IPCV(),
    "IPCV() + ADSC()": IPCV() + ADSC(),
}


@torch.inference_mode()
def ideal(model: Any, held: list[int]) -> float:
    """Time of the language model over the stock model's, if a layer that holds ``n`` tokens took a stock layer's time.

    ``held[0]`` is the stock length; the others are those of the layers.
    """
    language, width = model.model.language_model, model.config.text_config.hidden_size
    seconds = {}
    for length in set(held):
        x = torch.randn(1, length, width)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            language(inputs_embeds=x, use_cache=True)
            times.append(time.perf_counter() - start)
        seconds[length] = min(times)
    return sum(seconds[length] for length in held[1:]) / (len(held) - 1) / seconds[held[0]]


def prompt(config: Any, visual: int, images: int) -> dict[str, torch.Tensor]:
    """So many images of ``visual`` tokens each."""
    one = Shaped(config).layout(visual)
    return Shaped(config).inputs(replace(one, tokens=images * one.tokens, images=images), batch=1, seed=0)


def compare(model: Any, batch: Any, method: Method, pairs: int) -> dict[str, Any]:
    """Stock and compressed runs in turn; medians of the ratios of neighbours."""
    ratios: dict[str, list[float]] = {}
    length = int(batch["input_ids"].shape[1])
    timed(model, batch, None, NEW)  # it and the next one warm up
    with foveate.compress(model, method) as handle:
        model.generate(**batch, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        report = handle.report()
    for pair in range(pairs):
        order = (None, method) if pair % 2 else (method, None)
        found = {each: timed(model, batch, each, NEW) for each in order}
        stock, ours = found[None], found[method]
        speed = {name: stock[name] / ours[name] for name in STAGES}
        share = ideal(model, [length, *report.layer_tokens])
        speed["prefill_of_ideal"] = speed["prefill"] * share
        spent = report.flops["tower"] + report.flops["sites"]
        speed["tower_of_ideal"] = speed["tower"] * spent / report.full_flops["tower"]
        for name, value in speed.items():
            ratios.setdefault(name, []).append(value)
    return {
        "method": method.to_dict(),
        "tokens_per_layer": report.layer_tokens,
        "flops": report.flops_ratio,
        "kv": report.kv_bytes / report.full_kv_bytes,
        "ratios": {name: statistics.median(found) for name, found in ratios.items()},
        "spread": {name: [min(found), max(found)] for name, found in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--images", type=int, action="append", help="how many, repeatable; default: 1")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--visual", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = shapes.qwen2_5_small(options.width, options.layers, tower=320, blocks=options.blocks, head=80)
    model = shapes.build(config, torch.float32, CPU, None, seed=0)
    runs = []
    for images in options.images or [1]:
        batch, rows = prompt(config, options.visual, images), {}
        most = probe(model, batch, None, NEW)["peak"]
        for name, method in CASES.items():
            row = compare(model, batch, method, options.pairs) | {
                "peak": probe(model, batch, method, NEW)["peak"] / most
            }
            rows[name] = row
            print(f"{images} images, {name}: " + " ".join(f"{k} {v:.2f}" for k, v in row["ratios"].items()), flush=True)
        runs.append(
            {"images": images, "visual": int((batch["input_ids"] == config.image_token_id).sum()), "cases": rows}
        )
    shape = {k: getattr(options, k) for k in ("width", "layers", "blocks", "visual", "pairs")}
    found = {"machine": machine(CPU), "shape": shape, "runs": runs}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(tables.systems(found))


if __name__ == "__main__":
    main()
