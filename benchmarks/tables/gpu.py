"""Tables of `gpu_check.py`: whether kernels agree, and what methods save on one GPU."""

from __future__ import annotations

from typing import Any

from tables.cells import table


def agreement(found: dict[str, Any]) -> str:
    """A row for each kind of answer: how it went with each kernel, worst first where batches and models differ."""
    lines = found["agreement"]
    kernels = list(dict.fromkeys(line["kernel"] for line in lines))
    kinds = dict.fromkeys(line["answer"] for line in lines if line["answer"] not in ("", "(stock)"))
    whole = {line["kernel"]: line["status"] for line in lines if not line["answer"]}
    rows = []
    for kind in kinds:
        cells = []
        for kernel in kernels:
            own = [line for line in lines if (line["kernel"], line["answer"]) == (kernel, kind)]
            cells.append(_worst(own) if own else whole.get(kernel, "-"))
        rows.append((kind, *cells))
    return table(("answer", *kernels), rows)


def _worst(lines: list[dict[str, Any]]) -> str:
    """What became of several comparisons, in a few words."""
    others = list(dict.fromkeys(line["status"] for line in lines if line["status"] != "agrees"))
    apart = [line["apart"] for line in lines if "apart" in line]
    words = [] if not apart else [f"{'differs' if 'differs' in others else 'agrees'}, {max(apart):.1e}"]
    return "; ".join(words + [each for each in others if each != "differs"])


def speed(found: dict[str, Any]) -> str:
    """A table for each model and size."""
    parts = []
    for case in found["speed"]:
        if not case["lines"]:
            parts.append(f"{case['model']}, {case['visual']:,} visual tokens: {case['status']}")
            continue
        head = f"{case['model']}, {case['layers']} layers, {case['visual']:,} visual tokens, {case['dtype']}, {case['attn']}"
        rows = []
        for name, line in case["lines"].items():
            if "median" not in line:
                rows.append((name, line["status"], *[""] * 5))
                continue
            times, faster = line["median"], line.get("faster", {})
            decode = f"{times['decode'] * 1e3:.1f} ms" if "decode" in times else ""
            cells = [f"{times['first'] * 1e3:,.0f} ms", decode]
            cells += [f"{faster[key]:.2f}x" if key in faster else "" for key in ("first", "prefill", "decode")]
            cells.append(f"{line['memory']:.0%}" if "memory" in line else "")
            rows.append((name, *cells))
        heads = ("", "first token", "a token after it", "first token", "prefill", "decoding", "memory")
        parts += [f"{head}:", table(heads, rows)]
    return "\n\n".join(parts)
