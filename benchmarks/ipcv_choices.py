"""What each choice of IPCV does to the reference models: depth, stabilised blocks, neighbours, scope, share, controls.

    python benchmarks/ipcv_choices.py [--per-task 12] [--split validation] [--seed 0] [--reference NAME ...]
                                      [--json FILE]

Every variant answers the same questions as the stock model. *Agrees* is the share of questions that it judges as the stock
model does (right stays right, wrong stays wrong), which says more than the accuracy where questions are few. FLOPs are those
of the vision tower, the method's own work included, over the stock tower's, and of the whole call over the whole call.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import foveate
from foveate import IPCV, Host, Method, Parked, Reduction, Site, Tokens
from foveate.lab.evaluation.batches import grouped
from foveate.lab.evaluation.subject import Subject, load
from foveate_reference.data import samples
from foveate_reference.vocabulary import TASKS

from tables import ipcv as tables


@dataclass(frozen=True)
class RandomChoice(IPCV):
    """Control: which patches go on is drawn by lot."""

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        draw = torch.rand(max(tokens.spans.sizes), 1, generator=torch.Generator().manual_seed(0))
        drawn = draw.to(tokens.index.device)[tokens.index]
        return super().reduce(Tokens(**{**vars(tokens), "signals": {"residual": drawn}}), site)


@dataclass(frozen=True)
class Frozen(IPCV):
    """Control: no reconstruction, a parked patch comes back as it left."""

    def restore(self, tokens: Tokens, parked: Parked, site: Site) -> Tensor:
        return Method.restore(self, tokens, parked, site)


def variants(host: Host) -> dict[str, list[IPCV]]:
    """Group -> what is compared in it; the first of each differs from the defaults in nothing."""
    depths = [(b, s) for b in (1, 2) for s in (0, 1, 2, 3) if b < host.blocks and b + s <= host.blocks]
    return {
        "defaults": [IPCV()],
        "depth and stabilised blocks": [IPCV(block=block, stabilise=stabilise) for block, stabilise in depths],
        "neighbours": [IPCV(neighbours=k) for k in (1, 3, 10, 30)],
        "share": [IPCV(ratio=keep) for keep in (0.65, 0.5, 0.35, 0.2, 0.1)],
        "scope": [IPCV(), IPCV(across="budget")],
        "the score upside down": [
            method
            for block in (1, 2)
            for method in (IPCV(block=block), RandomChoice(block=block), IPCV(block=block, changed="least"))
        ],
        "controls": [IPCV(), RandomChoice(), Frozen(), RandomChoice(stabilise=0), Frozen(stabilise=0)],
    }


def ask(subject: Subject, batches: Sequence[Any], method: Method | None) -> tuple[list[bool], float, float]:
    """Which questions are answered right, and the share of the stock FLOPs: of the tower, and of all."""
    right: list[bool] = []
    now, full = {"tower": 0.0, "all": 0.0}, {"tower": 0.0, "all": 0.0}
    for batch in batches:
        handle = None if method is None else foveate.compress(subject.model, method)
        with torch.inference_mode():
            out = subject.model.generate(**batch.inputs, max_new_tokens=1, do_sample=False)
        if handle is not None:
            report = handle.report()
            for total, flops in ((now, report.flops), (full, report.full_flops)):
                total["tower"] += flops["tower"] + flops["sites"]
                total["all"] += sum(flops.values())
            handle.remove()
        words = subject.preparation.processor.batch_decode(out[:, -1:], skip_special_tokens=True)
        right += [str(word).strip() == sample.answer for word, sample in zip(words, batch.samples)]
    if method is None:
        return right, 1.0, 1.0
    return right, now["tower"] / full["tower"], now["all"] / full["all"]


def measure(reference: str, split: str, per_task: int, seed: int) -> dict[str, Any]:
    """All variants on one reference model."""
    subject = load(f"reference-{reference}")
    asked = samples(split, tasks=TASKS, per_task=per_task, seed=seed)
    batches = [subject.preparation.batch(group) for group in grouped(asked)]
    dense, _, _ = ask(subject, batches, None)
    known: dict[str, dict[str, Any]] = {}
    groups: dict[str, list[str]] = {}
    for group, methods in variants(subject.host).items():
        groups[group] = []
        for method in methods:
            name = repr(method)
            groups[group].append(name)
            if name in known:
                continue
            right, tower, everything = ask(subject, batches, method)
            lost, won = (sum(a and not b for a, b in zip(*pair)) for pair in ((dense, right), (right, dense)))
            known[name] = {
                "options": method.to_dict(),
                "depths": method.depths(subject.host),
                "accuracy": sum(right) / len(right),
                "of_dense": sum(right) / sum(dense),
                "agrees": 1 - (lost + won) / len(right),
                "lost": lost,
                "won": won,
                "tower_flops": tower,
                "flops": everything,
            }
            print(f"{reference}: {name}: {sum(right) / sum(dense):.3f} of dense, tower {tower:.3f}", flush=True)
    return {
        "questions": len(dense),
        "weights": subject.digest,
        "dense": sum(dense) / len(dense),
        "variants": known,
        "groups": groups,
    }


def authors_shape(patches: int = 5120, blocks: int = 32, width: int = 1280) -> list[dict[str, float]]:
    """FLOPs over dense in a tower like Qwen2-VL-7B's (MLP four times as wide, full attention), by formula, neighbours too."""
    found = []
    block, stabilise = IPCV().depths(Host("qwen2_vl", blocks, 28, has_cls=False))
    for keep in (0.5, 0.35, 0.2, 0.05):
        kept = math.floor(keep * patches + 0.5)

        def cost(queries: int, keys: int, projected: int) -> float:
            linear = 2 * width**2 * (2 * projected + 2 * keys + 8 * queries)
            return linear + 4 * queries * keys * width

        search = 2 * (patches - kept) * kept * width
        rest = (blocks - block - stabilise) * cost(kept, kept, kept)
        dense = blocks * cost(patches, patches, patches)
        early = block * cost(patches, patches, patches)
        attending = stabilise * cost(kept, patches, kept)
        released = stabilise * (cost(patches, patches, patches) - 16 * width**2 * (patches - kept))
        found.append(
            {
                "keep": keep,
                "flops": (early + attending + rest + search) / dense,
                "all_queries": (early + released + rest + search) / dense,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-task", type=int, default=12)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", action="append", choices=("qwen2_5_vl", "llava"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = {
        "split": given.split,
        "per_task": given.per_task,
        "seed": given.seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "foveate": foveate.__version__,
        },
        "references": {
            name: measure(name, given.split, given.per_task, given.seed)
            for name in given.reference or ("qwen2_5_vl", "llava")
        },
        "authors_shape": authors_shape(),
    }
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    for name in results["references"]:
        print(f"\n{name}: {tables.choices(results, name)}")
    print(f"\n{tables.encoder(results)}")


if __name__ == "__main__":
    main()
