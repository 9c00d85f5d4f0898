"""How time and memory grow: with visual tokens, images in a row, frames of a video, rows of a batch. Stock beside methods.

    python benchmarks/growth.py [--json FILE] [--seconds 540] [--method tome] [--threads 1]

Two measurements. *Calls*: the prefill of a small Qwen2.5-VL with random weights, stock and with a few methods, so that the
runtime and the signals are in it; its tower has windows only, so that what grows with the square is the language model's
attention. *Decisions*: what each method of the registry decides at all of its sites, as `selector_cost.py` asks it, beside the
stock model's attention alone (one layer's kernel, all heads). Memory is the bytes of tensors that are alive at once.

An exponent is the slope of a line through the logarithms, with its 95 % interval; ``last`` is that between the two largest
sizes, where fixed costs no longer flatten it. What takes longer than the time allows is left out, largest sizes first.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import stats

import foveate
from foveate import IPCV, LUVC, FastV, Method, Stride, VisionZip
from foveate.errors import FoveateError
from foveate.lab.bench import shapes
from foveate.lab.bench.memory import LiveTensors
from foveate.lab.bench.result import machine
from foveate.runtime.layout import frames
from foveate.tokens import Spans

from selector_cost import TEXT, Model, Noise, Walk, chosen

CPU = torch.device("cpu")
ATTENTION, STOCK = "attention", "stock"
CALLED: dict[str, Method | None] = {
    STOCK: None,
    "stride": Stride(keep=0.5),
    "fastv": FastV(layer=1),
    "visionzip": VisionZip(keep=0.25),
    "ipcv": IPCV(block=1, stabilise=1),
    "luvc": LUVC(),
}
Grids = list[tuple[int, int, int]]


def one(tokens: int) -> tuple[int, int, int]:
    """An image of about so many tokens."""
    height = int(tokens**0.5)
    return 1, height, tokens // height


#: What grows -> its sizes, smallest first -> the images of each row: (frames, height, width) in tokens.
AXES: dict[str, dict[int, list[Grids]]] = {
    "visual tokens": {n: [[one(n)]] for n in (256, 1024, 2048, 4096, 8192, 16384)},
    "images in a row": {n: [[one(256)] * n] for n in (1, 4, 8, 16, 32, 64)},
    "small images beside a large one": {n: [[one(1024), *[one(16)] * n]] for n in (4, 8, 16, 32, 64)},
    "frames of a video": {n: [[(n // 2, 8, 8)]] for n in (16, 32, 64, 128, 256)},
    "rows of a batch": {n: [[one(256)]] * n for n in (1, 2, 4, 8, 16)},
}


def small(layers: int = 2) -> Any:
    """The config of the model that is called."""
    config: Any = shapes.qwen2_5_small(64, layers, tower=64, blocks=4)
    config.vision_config.fullatt_block_indexes = []
    return config


def prompt(config: Any, rows: list[Grids]) -> dict[str, torch.Tensor]:
    """Images and videos in rows of equal length, between words."""
    vision, ids, kinds, grids = config.vision_config, [], [], {"image": list[list[int]](), "video": list[list[int]]()}
    merge = vision.spatial_merge_size
    for row in rows:
        line = [20] * (TEXT // 2)
        for t, h, w in row:
            kind = "video" if t > 1 else "image"
            grids[kind].append([t, merge * h, merge * w])
            token = getattr(config, f"{kind}_token_id")
            line += [config.vision_start_token_id, *[token] * (t * h * w), config.vision_end_token_id]
        line += [21] * (TEXT - TEXT // 2)
        ids.append(line)
        kinds.append([{config.image_token_id: 1, config.video_token_id: 2}.get(token, 0) for token in line])
    made = {"input_ids": torch.tensor(ids), "mm_token_type_ids": torch.tensor(kinds)}
    made["attention_mask"] = torch.ones_like(made["input_ids"])
    channels = 3 * vision.temporal_patch_size * vision.patch_size**2
    generator = torch.Generator().manual_seed(0)
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            patches = sum(math.prod(grid) for grid in grids[kind])
            made[name] = torch.randn(patches, channels, generator=generator)
            made[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
    return made


def spans_of(rows: list[Grids]) -> Spans:
    """The same as methods see it."""
    return frames([grid for row in rows for grid in row], [number for number, row in enumerate(rows) for _ in row])


class Measured:
    """Seconds and bytes by name and size, as long as there is time.

    Attributes:
        found: name -> size -> ``seconds`` and ``bytes``.
        left_out: what there was no time for.
    """

    def __init__(self, end: float) -> None:
        self.found: dict[str, dict[int, dict[str, float]]] = {}
        self.left_out: list[str] = []
        self._end = end

    def add(self, name: str, size: int, known: Any, call: Callable[[], Callable[[], Any]]) -> None:
        """Measure what ``call`` makes ready: once for its memory, then for its time; short ones several times."""
        before = self.found.get(name, {})
        expected = 8 * max((each["seconds"] for each in before.values()), default=0.0)
        if time.monotonic() + expected > self._end:
            self.left_out.append(f"{name} at {size}")
            return
        run, times = call(), list[float]()
        with LiveTensors(known) as live:
            run()
        while not times or (len(times) < 5 and sum(times) < 0.5):
            run = call()
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        row = {"seconds": statistics.median(times), "bytes": float(live.peak)}
        self.found.setdefault(name, {})[size] = row
        print(f"    {name:<16} {size:>6} {row['seconds'] * 1e3:10.2f} ms {row['bytes'] / 2**20:10.2f} MiB", flush=True)


def exponent(sizes: dict[int, dict[str, float]], key: str) -> dict[str, Any] | None:
    """The slope of the logarithms, its interval, and that of the last step; None: there is nothing that could grow."""
    points = [(math.log(size), math.log(row[key])) for size, row in sorted(sizes.items()) if row[key] > 0]
    if len(points) < 2 or len(points) < len(sizes):
        return None
    (x0, y0), (x1, y1) = points[-2:]
    found: dict[str, Any] = {"last": (y1 - y0) / (x1 - x0)}
    if len(points) > 2:
        line = stats.linregress(*zip(*points))
        reach = float(stats.t.ppf(0.975, len(points) - 2) * line.stderr)
        found |= {"slope": float(line.slope), "interval": [float(line.slope) - reach, float(line.slope) + reach]}
    return found


def calls(axis: str, limit: float) -> Measured:
    """The prefill of a whole model, stock and with each of a few methods."""
    config, measured = small(), Measured(time.monotonic() + limit)
    model = shapes.build(config, torch.float32, CPU, "sdpa", seed=0)
    for size, rows in AXES[axis].items():
        batch = prompt(config, rows)
        known = [*model.parameters(), *model.buffers(), batch]

        def run() -> None:
            model(**batch, use_cache=True, logits_to_keep=1)  # noqa: B023 - is called before the next one

        for name, method in CALLED.items():
            handle = None if method is None else foveate.compress(model, method)
            measured.add(name, size, known, lambda: run)
            if handle is not None:
                handle.remove()
    return measured


def decisions(axis: str, model: Model, methods: dict[str, Method], noise: Noise, limit: float) -> Measured:
    """What every method decides, and the kernel of the stock model's attention."""
    measured, text = Measured(time.monotonic() + limit), model.config.get_text_config()
    heads, width = text.num_attention_heads, text.hidden_size // text.num_attention_heads
    for size, rows in AXES[axis].items():
        spans = spans_of(rows)
        length = TEXT + sum(math.prod(grid) for grid in rows[0])
        q = noise.states(len(rows), heads, length, width)

        def attend() -> None:
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)  # noqa: B023

        measured.add(ATTENTION, size, [q], lambda: attend)
        for name, method in methods.items():
            try:
                Walk(model, method, spans_of(AXES["rows of a batch"][1]), noise)
            except FoveateError:
                continue
            measured.add(name, size, noise.tensors, partial(_walk, model, method, spans, noise))
    return measured


def _walk(model: Model, method: Method, spans: Spans, noise: Noise) -> Callable[[], Any]:
    return Walk(model, method, spans, noise).run


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--method", action="append", help="by name; by default all")
    parser.add_argument("--axis", action="append", choices=[*AXES])
    parser.add_argument("--most", type=int, default=16384, help="visual tokens of the largest call")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for sizes in AXES.values():
        for size in [size for size, rows in sizes.items() if sum(spans_of(rows).sizes) > options.most]:
            del sizes[size]
    asked = Model("small-qwen2.5-vl")
    noise = Noise((options.most + 2048) * asked.widest)
    methods = dict(chosen(options.method or []))
    axes, end = options.axis or list(AXES), time.monotonic() + options.seconds
    found: dict[str, Any] = {}
    for number, axis in enumerate(axes):
        # All that is left for the first axis, which has the longest calls, is half of it.
        share = (end - time.monotonic()) / (2 * (len(axes) - number)) if number else options.seconds * 0.25
        print(axis, flush=True)
        parts = {"calls": calls(axis, share), "decisions": decisions(axis, asked, methods, noise, share)}
        found[axis] = {
            name: {
                "sizes": part.found,
                "time": {each: exponent(sizes, "seconds") for each, sizes in part.found.items()},
                "memory": {each: exponent(sizes, "bytes") for each, sizes in part.found.items()},
                "left_out": part.left_out,
            }
            for name, part in parts.items()
        }
    if options.json:
        described = {name: method.to_dict() for name, method in {**methods, **CALLED}.items() if method is not None}
        written = {"machine": machine(CPU), "methods": described, "axes": found}
        options.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
