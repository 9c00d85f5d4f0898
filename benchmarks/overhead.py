"""What the hooks cost when nothing is removed, and how much of the ideal speed-up arrives when half is.

    python benchmarks/overhead.py [--json FILE] [--pairs N] [--width 1024] [--layers 6] [--visual 1024] [--threads 2]

A Qwen2.5-VL with random weights (fine for speed, never for accuracy). Stock and compressed forwards alternate in one
process, A B B A ..., and every figure is the median of the ratios of neighbours, because absolute times drift. Ideal is
the ratio of the FLOPs; realised is the ratio of the times.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import foveate
from foveate import Method, Stride

IMAGE, START, END = 10, 12, 13


def build(width: int, layers: int) -> Any:
    """A Qwen2.5-VL whose language model has ``width`` channels and ``layers`` layers, and a small tower."""
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=1000,
            hidden_size=width,
            intermediate_size=width * 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 256,
            max_position_embeddings=32_768,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[8, 12, 12]),
        ),
        vision_config=dict(
            depth=2,
            hidden_size=160,
            intermediate_size=320,
            num_heads=2,
            patch_size=14,
            window_size=112,
            out_hidden_size=width,
            fullatt_block_indexes=[1],
        ),
        image_token_id=IMAGE,
        video_token_id=11,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def prompt(visual: int, text: int = 32) -> dict[str, torch.Tensor]:
    """One image of ``visual`` tokens and ``text`` words."""
    side = int(visual**0.5)
    grid = (1, 2 * side, 2 * (visual // side))
    n = side * (visual // side)
    ids = torch.tensor([[20] * (text // 2) + [START] + [IMAGE] * n + [END] + [21] * (text // 2)])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(grid[1] * grid[2], 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([grid]),
        "logits_to_keep": 1,
    }


def seconds(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """Time of one forward."""
    start = time.perf_counter()
    with torch.inference_mode():
        model(**batch)
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
        "method": method.to_json(),
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
    model, batch = build(options.width, options.layers), prompt(options.visual)
    third = options.layers // 3
    cases = {
        "keep = 1": Stride(keep=1.0, layers=(0, third, 2 * third)),
        "keep = 0.5 before layer 0": Stride(keep=0.5),
        "keep = 0.5 at 1/3 and 2/3 of the depth": Stride(keep=0.5, layers=(third, 2 * third)),
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
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "threads": options.threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "foveate": foveate.__version__,
        }
        shape = {k: getattr(options, k) for k in ("width", "layers", "visual", "pairs")}
        options.json.write_text(json.dumps({"machine": machine, "shape": shape, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
