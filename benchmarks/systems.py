"""What LUVC, IPCV and ADSC save in time: prefill, vision tower, decoding, KV cache; and how near that is to the ideal.

    python benchmarks/systems.py [--json FILE] [--pairs 5] [--width 1024] [--layers 12] [--visual 1024] [--threads 2]

A Qwen2.5-VL with random weights, fp32. Stock and compressed runs alternate in one process, and every figure is the median of
the ratios of neighbours. The ideal time of the language model is the sum over its layers of the stock layer's time at
that layer's number of tokens (interpolated between measured lengths); that of the tower is its share of FLOPs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import foveate
from foveate import ADSC, IPCV, LUVC, SPU, Method, Stride

IMAGE, START, END = 10, 12, 13
TEXT, NEW = 32, 9


def build(width: int, layers: int, blocks: int) -> Any:
    """A language model of that width and depth behind a tower of ``blocks`` blocks, a quarter of them with full attention."""
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
            depth=blocks,
            hidden_size=320,
            intermediate_size=864,
            num_heads=4,
            patch_size=14,
            window_size=112,
            out_hidden_size=width,
            fullatt_block_indexes=list(range(3, blocks, 4)),
        ),
        image_token_id=IMAGE,
        video_token_id=11,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def prompt(visual: int) -> dict[str, torch.Tensor]:
    """One square image of about ``visual`` tokens between words."""
    side = int(visual**0.5)
    words = TEXT // 2
    ids = torch.tensor([[20] * words + [START] + [IMAGE] * side**2 + [END] + [21] * words])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(4 * side**2, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]]),
    }


class Clock:
    """Seconds spent in a module, the hooks of others on what is inside it included."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.calls: list[float] = []
        self.began = 0.0
        module.register_forward_pre_hook(lambda *_: setattr(self, "began", time.perf_counter()))
        module.register_forward_hook(lambda *_: self.calls.append(time.perf_counter() - self.began))


@torch.inference_mode()
def run(model: Any, batch: dict[str, torch.Tensor], clocks: dict[str, Clock]) -> dict[str, float]:
    """Seconds of the tower, of the language model's prefill, of the first token, and per token after it."""
    for clock in clocks.values():
        clock.calls.clear()
    start = time.perf_counter()
    model.generate(**batch, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    total = time.perf_counter() - start
    tower, language = clocks["tower"].calls, clocks["language"].calls
    rest = sum(language[1:])
    return {"tower": sum(tower), "prefill": language[0], "first": total - rest, "decode": rest / (len(language) - 1)}


@torch.inference_mode()
def layer_seconds(model: Any, lengths: list[int]) -> Callable[[float], float]:
    """Seconds of one stock decoder layer for any number of tokens."""
    language, times = model.model.language_model, []
    for length in lengths:
        x = torch.randn(1, length, model.config.text_config.hidden_size)
        best = []
        for _ in range(3):
            start = time.perf_counter()
            language(inputs_embeds=x, use_cache=True)
            best.append(time.perf_counter() - start)
        times.append(min(best) / len(language.layers))
    return lambda n: float(np.interp(n, lengths, times))


def compare(model: Any, batch: Any, method: Method, pairs: int, clocks: dict[str, Clock]) -> dict[str, Any]:
    """Stock and compressed runs in turn; medians of the ratios of neighbours."""
    ratios: dict[str, list[float]] = {}
    visual = int((batch["input_ids"] == IMAGE).sum())
    lengths = [TEXT + 2 + round(share * visual) for share in (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)]
    realised = []
    for pair in range(pairs + 1):
        stock = run(model, batch, clocks) if pair % 2 else None
        with foveate.compress(model, method) as handle:
            ours = run(model, batch, clocks)
            report = handle.report()
        stock = stock or run(model, batch, clocks)
        if not pair:  # the first pair warms up
            continue
        layer = layer_seconds(model, lengths)
        held = [count + TEXT + 2 for count in report.layer_tokens]
        share = sum(map(layer, held)) / (len(held) * layer(int(batch["input_ids"].shape[1])))
        realised.append(stock["prefill"] * share / ours["prefill"])
        for name in stock:
            ratios.setdefault(name, []).append(stock[name] / ours[name])
    return {
        "method": method.to_json(),
        "tokens_per_layer": report.layer_tokens,
        "flops": report.flops_ratio,
        "kv": report.kv_bytes / report.full_kv_bytes,
        "speed_up": {name: statistics.median(found) for name, found in ratios.items()},
        "spread": {name: [min(found), max(found)] for name, found in ratios.items()},
        "prefill_realised_over_ideal": statistics.median(realised),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--visual", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, batch = build(options.width, options.layers, options.blocks), prompt(options.visual)
    clocks = {"tower": Clock(model.model.visual), "language": Clock(model.model.language_model)}
    cases = {
        "Stride(keep=0.5)": Stride(keep=0.5),
        "SPU()": SPU(),
        "LUVC()": LUVC(),
        "ADSC()": ADSC(),
        "IPCV()": IPCV(),
        "IPCV() + ADSC()": IPCV() + ADSC(),
    }
    rows = {}
    for name, method in cases.items():
        rows[name] = row = compare(model, batch, method, options.pairs, clocks)
        speed = " ".join(f"{part} {value:.2f}x" for part, value in row["speed_up"].items())
        print(
            f"{name:<17} {speed} | KV {row['kv']:.0%}, FLOPs {row['flops']:.0%}, "
            f"prefill realised/ideal {row['prefill_realised_over_ideal']:.2f}",
            flush=True,
        )
    if options.json:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "threads": options.threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "foveate": foveate.__version__,
        }
        shape = {k: getattr(options, k) for k in ("width", "layers", "blocks", "visual", "pairs")}
        options.json.write_text(json.dumps({"machine": machine, "shape": shape, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
