"""The choices that LUVC's paper leaves open, measured: every variant on the reference models, at one share of the LLM's FLOPs.

    python benchmarks/luvc_choices.py [--reference qwen2_5_vl] [--per-task 15] [--group NAME] [--out FILE]

The dial of each variant is set so that the prefill of the language model costs ``--budget`` of what it costs the stock
model; then it answers questions of the validation split. Variants that are in the file already are not measured again
(``--again`` forgets them).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import foveate
from foveate import LUVC, OIM, SPU, Method, Reduction, Site, Tokens
from foveate.dial import Dial
from foveate.lab.evaluation.asking import _generate
from foveate.lab.evaluation.batches import grouped, probes
from foveate.lab.evaluation.subject import Subject, load
from foveate.method import Positions
from foveate.ops import select
from foveate_reference.data import Sample, samples
from foveate_reference.vocabulary import TASKS

from tables import luvc as tables


@dataclass(frozen=True)
class Even(SPU):
    """Control: evenly spaced tokens, on SPU's schedule."""

    def reduce(self, tokens: Tokens, site: Site) -> Reduction:
        counts = tokens.budget(site)
        return Reduction(select.stride(tokens.counts, counts), counts)


@dataclass(frozen=True)
class Lots(SPU):
    """Control: tokens drawn by lot, on SPU's schedule."""

    def score(self, tokens: Tokens, site: Site) -> Tensor:
        return foveate.Random(layer=site.layer).score(tokens, site)


def _score(**options: Any) -> dict[str, Any]:
    return {"mode": "low_frequency_energy", "filter": "notch", "normalise": False} | options


def _both(merge: float = 0.8, ratio: float = 0.7, positions: Positions = "keep", **pruner: Any) -> Method:
    """LUVC's parts, of which one has other options."""
    return OIM(keep=merge, positions=positions, **_HIDDEN) + SPU(ratio=ratio, positions=positions, **pruner)


def _gaussian(cutoff: float) -> dict[str, Any]:
    return {"filter": "gaussian", "cutoff": cutoff}


_LATE = ((5, 0.5), (7, 0.0))
_RESIDUAL = _score(mode="residual", filter="gaussian", cutoff=0.2, normalise=True)
_HIDDEN: dict[str, Any] = {"similarity": "hidden"}
_AS_IT_IS = "settings as they are"

#: What each table compares: name -> method. All but the last table's are set to the same budget.
VARIANTS: dict[str, dict[str, Method]] = {
    "controls": {
        "Random, one cut at layer 0": foveate.Random(),
        "Stride, one cut at layer 0": foveate.Stride(),
        "evenly spaced, halving": Even(schedule="halving"),
        "random, halving": Lots(schedule="halving"),
        "Downsample": foveate.Downsample(),
        "VTW (all leave at one layer)": foveate.VTW(),
        "FastV": foveate.FastV(),
        "V2Drop": foveate.V2Drop(),
    },
    "score (SPU alone, halving)": {
        name: SPU(schedule="halving", **_score(**options))
        for name, options in {
            "L1 norm (notch of 1)": {"cutoff": 1.0},
            **{f"energy, notch {c}": {"cutoff": c} for c in (0.5, 0.7, 0.85)},
            "energy, notch 0.85, wrap-around (VTC-LFC's score)": {"cutoff": 0.85, "mirror": False},
            **{f"energy, gaussian {c}": _gaussian(c) for c in (0.1, 0.2, 0.4, 0.8)},
            **{f"residual, gaussian {c}": {**_gaussian(c), "mode": "residual"} for c in (0.1, 0.2, 0.4, 0.8)},
            "residual, notch 0.85": {"mode": "residual", "cutoff": 0.85},
            "residual, gaussian 0.2, RMS-normed": _RESIDUAL,
            "residual, gaussian 0.1, RMS-normed": {**_RESIDUAL, "cutoff": 0.1},
            "residual, gaussian 0.4, RMS-normed": {**_RESIDUAL, "cutoff": 0.4},
            "energy, gaussian 0.2, RMS-normed": {**_RESIDUAL, "mode": "low_frequency_energy"},
            "residual, gaussian 0.2, RMS-normed, wrap-around": {**_RESIDUAL, "mirror": False},
            "residual, gaussian 0.2, RMS-normed, along channels": {**_RESIDUAL, "along": "channels"},
            "energy, notch 0.85, along channels": {"cutoff": 0.85, "along": "channels"},
        }.items()
    },
    "schedule (SPU alone)": {
        f"{score}, {name}": method
        for score, options in {"L1 norm": _score(cutoff=1.0), "residual": _RESIDUAL}.items()
        for name, method in {
            "linear": SPU(schedule="linear", **options),
            "linear, every layer": SPU(schedule="linear", every=1, **options),
            "half from 5, none from 7": SPU(schedule=_LATE, **options),
            "early: half from 0, none in the last": SPU(schedule="early", **options),
            "half from 0, none from 8": SPU(schedule="early", every=8, **options),
            "half from 0, 1/4 from 5, none from 8": SPU(schedule=((0, 0.5), (5, 0.25), (8, 0.0)), **options),
        }.items()
    },
    "early schedule, other scores": {
        "evenly spaced": Even(schedule="early"),
        "random": Lots(schedule="early"),
        "energy, notch 0.85": SPU(schedule="early", **_score(cutoff=0.85)),
        "energy, notch 0.85, wrap-around (VTC-LFC's score)": SPU(schedule="early", **_score(cutoff=0.85, mirror=False)),
        "energy, gaussian 0.2": SPU(schedule="early", **_score(**_gaussian(0.2))),
        "residual, gaussian 0.2, not normed": SPU(schedule="early", **{**_RESIDUAL, "normalise": False}),
        "L1 norm, RMS-normed": SPU(schedule="early", **_score(cutoff=1.0, normalise=True)),
    },
    "merger (OIM alone)": {
        "hidden states": OIM(**_HIDDEN),
        "keys": OIM(similarity="keys"),
        "plain mean": OIM(**_HIDDEN, weighted=False),
        "one choice for all lines": OIM(**_HIDDEN, shared=True),
        "as a smaller image (renumber)": OIM(**_HIDDEN, positions="renumber"),
        **{
            f"before block {block}": OIM(**_HIDDEN, passes=((block, "width", 0.7), (block, "height", 0.7)))
            for block in (0, 1, 2, 3)
        },
        "width before block 2, height before 3": OIM(**_HIDDEN, passes=((2, "width", 0.7), (3, "height", 0.7))),
    },
    "together (LUVC)": {
        "residual, early": _both(**_RESIDUAL),
        "L1 norm, early": _both(**_score(cutoff=1.0)),
        "residual, halving": _both(schedule="halving", **_RESIDUAL),
        "energy, notch 0.85, halving": _both(schedule="halving", **_score(cutoff=0.85)),
        "residual, linear": _both(schedule="linear", **_RESIDUAL),
        "residual, early, renumbered": _both(positions="renumber", **_RESIDUAL),
    },
    _AS_IT_IS: {
        "the default": LUVC(),
        "the default on the halving cascade": LUVC(schedule="halving"),
        **{
            f"merge {merge}, keep {keep}, none from layer {every}": (
                _both(merge, keep, every=every) if merge < 1 else SPU(ratio=keep, every=every)
            )
            for every, pairs in {
                8: ((1.0, 0.6), (0.9, 0.75), (0.9, 0.7), (0.8, 0.75), (0.7, 0.8), (0.6, 1.0), (0.5, 0.9)),
                9: ((1.0, 0.55), (0.9, 0.6), (0.8, 0.7), (0.7, 0.8), (0.6, 0.9), (0.5, 1.0)),
            }.items()
            for merge, keep in pairs
        },
    },
}


def share_of_prefill(subject: Subject, groups: Sequence[tuple[tuple[Sample, ...], float]], method: Method) -> float:
    """FLOPs of the language model's prefill over the stock model's, over the questions' layouts."""
    now = full = 0.0
    for group, weight in groups:
        with foveate.compress(subject.model, method) as handle:
            _generate(subject, subject.preparation.batch(group))
            report = handle.report()
        now += weight * report.flops["prefill"]
        full += weight * report.full_flops["prefill"]
    return now / full


def measure(subject: Subject, asked: Sequence[Sample], method: Method | None) -> dict[str, Any]:
    """Answers of a method, and what they cost over what they cost the stock model."""
    right: list[bool] = []
    cost = {"tokens": [0.0, 0.0], "tower": [0.0, 0.0], "prefill": [0.0, 0.0], "flops": [0.0, 0.0]}
    for group in grouped(asked):
        batch = subject.preparation.batch(group)
        if method is None:
            words = _generate(subject, batch)
        else:
            with foveate.compress(subject.model, method) as handle:
                words = _generate(subject, batch)
                report = handle.report()
            pairs = {
                "tokens": (report.mean_tokens * len(group), report.visual_tokens),
                "flops": (sum(report.flops.values()), sum(report.full_flops.values())),
                **{stage: (report.flops[stage], report.full_flops[stage]) for stage in ("tower", "prefill")},
            }
            for name, (now, full) in pairs.items():
                cost[name][0] += now
                cost[name][1] += full
        right += [word == sample.answer for word, sample in zip(words, group, strict=True)]
    return {
        "n": len(right),
        "accuracy": sum(right) / len(right),
        **{name: now / full if full else 1.0 for name, (now, full) in cost.items()},
    }


def run(reference: str, found: dict[str, Any], args: argparse.Namespace) -> None:
    """Measure what the file lacks of a model."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    subject = load(f"reference-{reference}")
    asked = samples(args.split, tasks=TASKS, per_task=args.per_task, seed=args.seed)
    groups = probes(asked, 2)
    key = f"{reference} {args.split} per_task={args.per_task} seed={args.seed} budget={args.budget}"
    table = found.setdefault(key, {"digest": subject.digest, "torch": torch.__version__, "rows": {}})
    if table["digest"] != subject.digest:
        raise SystemExit(f"{args.out} has results of other weights: say --again to forget them")
    rows = table["rows"]
    if "stock" not in rows:
        rows["stock"] = {"group": "stock", **measure(subject, asked, None)}
    for group, variants in VARIANTS.items():
        for name, method in variants.items():
            if f"{group}: {name}" in rows or (
                args.group and not any(part in f"{group}: {name}" for part in args.group)
            ):
                continue
            reachable = True
            if group != _AS_IT_IS:
                setting = Dial(method, subject.host, lambda m: share_of_prefill(subject, groups, m)).set(args.budget)
                method, reachable = setting.method, setting.reachable
            row = {"group": group, "name": name, "reachable": reachable, "method": method.to_dict()}
            rows[f"{group}: {name}"] = row | measure(subject, asked, method)
            print(name, json.dumps({k: v for k, v in rows[f"{group}: {name}"].items() if k != "method"}), flush=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", action="append", choices=("qwen2_5_vl", "llava"), help="default: both")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--per-task", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--group", action="append", help="only variants of which `table: name` contains one of these")
    parser.add_argument("--out", type=Path, default=Path("luvc_choices.json"))
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.exists() and not args.again else {}
    for reference in args.reference or ("qwen2_5_vl", "llava"):
        run(reference, found, args)
    print(tables.choices(found))


if __name__ == "__main__":
    main()
