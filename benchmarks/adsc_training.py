"""What ADSC's training is worth: the same steps with a reverse curriculum, at one ratio, and without compression.

    python benchmarks/adsc_training.py [--reference qwen2_5_vl] [--steps 5000] [--layers 0] [--work FOLDER]

LoRA on the train split of the reference benchmark, from each reference model; then every adapter, and the stock model
without one, answers the test split with ADSC at 66.7, 77.8 and 88.9 % of the visual tokens removed on average over the
layers. Retention is the accuracy over that of the stock model, without adapter and without compression. One run has LoRA
in the vision tower as well. The adapter that was trained without compression is the control: what more training alone
would do. The tokens leave before the first layer; --layers chooses others, or auto for ADSC's own, which cuts three times
while the reference models read the image (layers 3 to 6). A run that was stopped goes on where it was if --work is given.
Needs `pip install '.[train]'`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import foveate
import foveate_reference as reference
from foveate import ADSC
from foveate.lab.evaluation import protocol
from foveate.lab.evaluation.request import Reference
from foveate.lab.terminal import note, quiet_libraries
from foveate.lab.train import adsc
from foveate.methods.adsc import BUDGETS
from foveate.training.adsc import CHECKPOINTS, Recipe, Trained

#: What is trained, by the name of its folder: how it is called, its curriculum ("": no compression), and whether the tower
#: is trained, too.
RUNS = {
    "hard-to-easy": ("LoRA, reverse curriculum", "hard-to-easy", False),
    "constant": ("LoRA, constant ratio", "constant", False),
    "constant-tower": ("LoRA, constant ratio, tower trained, too", "constant", True),
    "none": ("LoRA without compression", "", False),
}
UNTRAINED = "no training"
LAYERS, AUTO = "0", "auto"


def trained(folder: Path, request: adsc.Request) -> Trained | None:
    """The adapter in ``folder``, made now unless it is there."""
    if (folder / "foveate_method.json").is_file():
        return None
    return adsc.train(request, (folder / CHECKPOINTS).is_dir(), note)


def measure(
    name: str, folder: Path | None, method: ADSC, out: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of `foveate eval`: the model without compression first."""
    request = Reference(
        out,
        f"reference-{name}",
        adapter=None if folder is None else str(folder),
        described=(json.dumps(method.to_dict()),),
        budgets=tuple(options.budget or BUDGETS.values()),
        per_task=options.per_task,
    )
    found = protocol.evaluate(request, lambda what, done: None)
    return [asdict(row) for row in found.rows]


def study(name: str, work: Path, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Everything for one reference model."""
    rows, losses = {}, {}
    for layers in options.layers or [LAYERS]:
        method = ADSC(layers=None if layers == AUTO else tuple(map(int, layers.split(","))))
        where = "" if len(options.layers or []) < 2 else f", layers {layers}"
        rows[UNTRAINED + where] = measure(name, None, method, work / f"eval-untrained-{layers}", options)
        for run in options.run or RUNS:
            label, curriculum, tower = RUNS[run]
            folder = work / f"adapter-{run}-{layers}"
            request = adsc.Request(
                folder,
                f"reference-{name}",
                samples=recipe.steps * recipe.batch,
                method=method if curriculum else replace(method, keep=1.0),
                curriculum=curriculum or "constant",
                recipe=replace(recipe, tower=tower),
                device="cpu",
            )
            trained(folder, request)
            losses[label + where] = json.loads((folder / adsc.RECORD).read_text())["losses"]
            rows[label + where] = measure(name, folder, method, work / f"eval-{run}-{layers}", options)
    dense = next(iter(rows.values()))[0]["accuracy"]
    return {
        "dense": dense,
        "questions": dense["n"],
        "losses": losses,
        "runs": {
            label: [
                {
                    "method": row["method"],
                    "budget": row["budget"] or 1.0,
                    "tokens": row["spent"]["tokens"],
                    "flops": row["spent"]["flops"],
                    "accuracy": row["accuracy"],
                    "retention": row["accuracy"]["value"] / dense["value"],
                    "tasks": {task: round(share["value"], 4) for task, share in row["tasks"].items()},
                }
                for row in found
            ]
            for label, found in rows.items()
        },
    }


def markdown(found: dict[str, Any]) -> str:
    """One table for each model."""
    settings = found["settings"]
    lines = ["# ADSC with and without training", ""]
    lines += [
        f"`{settings['command']}`: {settings['recipe']['steps']} steps of {settings['recipe']['batch']} chats of the "
        f"train split, LoRA rank {settings['recipe']['rank']}; accuracy on the test split, in brackets its 95 % interval.",
        "",
        "Retention: over the accuracy of the shipped model without adapter and without compression. LoRA without "
        "compression is the control: what more training alone does. FLOPs left: over those of the same model without "
        "compression; an adapter is not merged here, so its own FLOPs, which are many in a model this small, count too.",
    ]
    for name, study in found["models"].items():
        lines += ["", f"## {name}: {study['questions']} questions, shipped model {study['dense']['value']:.1%}", ""]
        lines += ["| | visual tokens removed | FLOPs left | accuracy | retention |", "|---|---|---|---|---|"]
        for label, rows in study["runs"].items():
            for row in rows:
                value, low, high = (row["accuracy"][key] for key in ("value", "low", "high"))
                lines.append(
                    f"| {label} | {1 - row['tokens']:.1%} | {row['flops']:.1%} | {value:.1%} ({low:.1%} to {high:.1%}) | "
                    f"{row['retention']:.1%} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", action="append", choices=reference.ARCHITECTURES, help="default: both")
    parser.add_argument("--run", action="append", choices=RUNS, help="default: all")
    parser.add_argument(
        "--budget", action="append", type=float, help="share of tokens left; default: the paper's three"
    )
    parser.add_argument("--layers", action="append", help=f"of ADSC, or {AUTO}; repeatable; default: {LAYERS}")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--per-task", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for adapters and answers; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(options.threads)
    recipe = replace(
        Recipe(),
        rank=options.rank,
        alpha=2 * options.rank,
        dropout=0.0,
        lr=options.lr,
        steps=options.steps,
        batch=options.batch,
        save_every=100,
    )
    names = options.reference or list(reference.ARCHITECTURES)
    command = " ".join(
        ["python benchmarks/adsc_training.py", *(f"--reference {name}" for name in options.reference or [])]
        + [f"--run {name}" for name in options.run or []]
        + [f"--layers {layers}" for layers in options.layers or [LAYERS]]
        + [f"--budget {budget}" for budget in options.budget or []]
        + [f"--{key} {getattr(options, key)}" for key in ("steps", "rank", "lr", "batch")]
        + [f"--per-task {options.per_task}"]
    )
    found: dict[str, Any] = {
        "settings": {
            "command": command,
            "recipe": asdict(recipe),
            "versions": {
                **{name: version(name) for name in ("torch", "transformers", "peft")},
                "foveate": foveate.__version__,
            },
        },
        "models": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            found["models"][name] = study(name, (options.work or Path(temporary)) / name, recipe, options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(markdown(found))


if __name__ == "__main__":
    main()
