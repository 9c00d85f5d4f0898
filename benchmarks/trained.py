"""What training is worth: trained compressors beside their own start, controls and a relative that needs no training.

    python benchmarks/trained.py [visionselector ...] [--steps 100] [--per-task 25] [--work FOLDER] [--json FILE]

Each method is trained as `foveate train` does it, on the train split of the reference benchmark, in one pass, by one recipe,
and asked questions of the test split. What it then spends is measured, and Random, Stride and the relative are set to spend
as much: visual tokens per decoder layer, or bytes of the KV cache or FLOPs where these are what a method's budget counts.
Differences are between answers to the same questions, with 95 % intervals (bootstrap, stratified by task). A run that was
stopped goes on in its folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from foveate.lab.bench.result import machine
from foveate.lab.evaluation import reference, statistics
from foveate.lab.evaluation.request import Reference
from foveate.lab.evaluation.results import Spent, right_or_wrong
from foveate.lab.evaluation.statistics import Floats
from foveate.lab.train.method import Request, train
from foveate.methods import make
from foveate.training.recipe import Recipe

CONTROLS = ("random", "stride")


@dataclass(frozen=True)
class System:
    """A method that is trained.

    Attributes:
        relative: a method that needs no training and chooses, or joins, in a like manner.
        by: what its budget counts.
        keep: what it is trained for; None: the paper's.
    """

    relative: str
    by: str = "tokens"
    keep: float | None = None


#: At the papers' budgets, but where an image of a hundred tokens would be left with two or less.
SYSTEMS = {
    "visionselector": System("divprune"),
    "covipal": System("sparsevlm"),
    "relevancenet": System("fastv"),
    "quecc": System("downsample", keep=0.25),
    "skipvision": System("redundancylens", by="flops"),
    "vocollama": System("downsample", by="kv", keep=0.04),
    "adaptivevoco": System("downsample", by="kv", keep=0.04),
    "vistog": System("tome", keep=0.25),
    "adsc": System("luvc"),
}


@dataclass(frozen=True, eq=False)
class Asked:
    """What one of those compared has answered.

    Attributes:
        right: ``(N,)`` 1 or 0, in the order of the questions.
        spent: over the stock model's.
        method: as plain data.
    """

    right: Floats
    spent: Spent
    method: dict[str, Any] | None

    def is_of(self, name: str) -> bool:
        """Whether it is of that method."""
        return self.method is not None and self.method["method"] == name


def asked(request: Reference, tell: Callable[[str, float], None]) -> tuple[list[str], dict[str, Asked]]:
    """The task of each question, and by label what was answered."""
    with reference.running(request, tell) as run:
        questions, answers = run.answered(tell)
        keys = list(questions)
        found = {
            entry.label: Asked(
                right_or_wrong(answers[entry], keys),
                Spent.over(answers[entry][key].cost for key in keys),
                None if entry.method is None else entry.method.to_dict(),
            )
            for entry in run.entries
        }
    return [questions[key].task for key in keys], found


def measure(name: str, model: str, work: Path, recipe: Recipe, per_task: int) -> dict[str, Any]:
    """Train a method, ask, and compare."""
    system, began = SYSTEMS[name], time.monotonic()
    method = make(name, **({} if system.keep is None else {"keep": system.keep}))
    samples = recipe.steps * recipe.batch
    told = Request(work / "trained", method, model, samples=samples, recipe=recipe, dtype="float32")
    trained, minutes = train(told, False, lambda line: print(line, flush=True)), (time.monotonic() - began) / 60

    def tell(what: str, done: float) -> None:
        print(f"{done:4.0%} {what}", flush=True)

    asks = Reference(work / "before", model=model, per_task=per_task, as_is=True, by=system.by)
    _, before = asked(replace(asks, described=(json.dumps(method.to_dict()),)), tell)
    tasks, after = asked(replace(asks, out=work / "after", adapter=str(work / "trained")), tell)
    start, mine = (next(line for line in lines.values() if line.is_of(name)) for lines in (before, after))
    budget = float(getattr(mine.spent, system.by))
    beside = tuple(dict.fromkeys((*CONTROLS, system.relative)))
    _, others = asked(replace(asks, out=work / "beside", as_is=False, budgets=(budget,), methods=beside), tell)
    lines = {"stock": others.pop("dense"), "start": start, "trained": mine, **others}
    return {
        "method": mine.method,
        "by": system.by,
        "relative": system.relative,
        "samples": samples,
        "questions": len(tasks),
        "minutes_of_training": minutes,
        "losses": [trained.losses[0], trained.losses[-1]],
        "agreement": [*trained.agreement[:1], *trained.agreement[-1:]],
        "lines": {
            label: {
                "accuracy": asdict(statistics.macro(tasks, line.right)),
                "spent": asdict(line.spent),
                "trained_above": asdict(statistics.difference(tasks, mine.right, line.right)),
            }
            for label, line in lines.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"of {', '.join(SYSTEMS)}; by default all")
    parser.add_argument("--model", default="reference-llava")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--per-task", type=int, default=25)
    parser.add_argument("--work", type=Path, help="folder that a run goes on in; else one that is thrown away")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if unknown := [name for name in options.systems if name not in SYSTEMS]:
        parser.error(f"there is no system {unknown[0]!r}; there is {', '.join(SYSTEMS)}")
    recipe, found = Recipe(rank=32, lr=2e-3, steps=options.steps, batch=options.batch), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.systems or SYSTEMS:
            work = (options.work or Path(folder)) / name
            done = work / "compared.json"
            if not done.is_file():
                done.write_text(json.dumps(measure(name, options.model, work, recipe, options.per_task)))
            found[name] = json.loads(done.read_text())
    told = {"model": options.model, "recipe": asdict(recipe), "systems": found, "machine": machine(torch.device("cpu"))}
    text = json.dumps(told, indent=1) + "\n"
    if options.json:
        options.json.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
