"""What breaks when visual tokens are withdrawn: four experiments on a reference model, each with its control, in one JSON.

    python benchmarks/breaking.py depth|abilities|positions|turns ... [--model reference-llava] [--per-task 25] [--json FILE]

*Depth*: before one decoder layer after the other a tenth of the tokens stays, chosen by a method or at random, or none does.
*Abilities*: a quarter of the tokens, by group of tasks. *Positions*: the same, with the position ids of the survivors kept, and
numbered anew; and where in the image they are. *Turns*: a second question about the same image, whose cache was filled, and
reduced, while another question was asked; the first question is taken back, so that the prompt is one the model knows.

Differences are between answers to the same questions: in points, with 95 % intervals of the mean difference.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import torch

import foveate
from foveate import (
    VTW,
    Downsample,
    FastV,
    Feather,
    IVCPrune,
    Method,
    PyramidDrop,
    Random,
    SparseVLM,
    Stride,
    ToMe,
    V2Drop,
    VisionZip,
)
from foveate.lab.asker import Asker
from foveate.lab.bench.result import machine
from foveate.lab.evaluation.questions import of_benchmark
from foveate.lab.evaluation.reference import Batch, answer, batches, load_subject
from foveate_reference import GROUPS, TASKS, Question, Sample, samples, split_seed
from foveate_reference.exhibits import Exhibit, make_exhibit
from foveate_reference.vocabulary import CHOICES

FEW, SOME = 0.1, 0.25  # shares of the tokens that stay: where depth is asked about, and elsewhere
DRAWS = (0, 1)  # seeds of what is random
#: Tasks that tell a good choice from a bad one in a small image: about one object, in a place of its own.
LOCAL = ("color", "shape", "read", "digit", "cell", "where")
ABILITIES: dict[str, Method] = {
    "random": Random(keep=SOME),
    "stride": Stride(keep=SOME),
    "downsample": Downsample(keep=SOME),
    "tome": ToMe(keep=SOME),
    "visionzip": VisionZip(keep=SOME),
    "fastv": FastV(keep=SOME),
    "feather": Feather(keep=SOME),
}
#: Each ranks by attention before the same early layer, or protects positions; the first two look at nothing.
POSITIONS: dict[str, Method] = {
    "random": Random(layer=1, ratio=SOME),
    "stride": Stride(layers=(1,), ratio=SOME),
    "fastv": FastV(layer=1, ratio=SOME),
    "feather": Feather(layers=(1,), ratios=(SOME,)),
    "ivcprune": IVCPrune(layer=1, ratio=SOME),
}
TURNS: dict[str, Method] = {
    "stride": Stride(keep=SOME),
    "visionzip": VisionZip(keep=SOME),
    "fastv": FastV(layer=2, ratio=SOME),
    "sparsevlm": SparseVLM(keep=SOME),
    "pyramiddrop": PyramidDrop(keep=SOME),
}

Right = list[bool]


def right(asker: Asker, groups: Sequence[Batch], method: Method | None) -> Right:
    """Which questions are answered rightly, in the order of the groups."""
    found = []
    for batch in groups:
        for prompt, said in zip(batch.prompts, answer(asker, batch, method)):
            found.append(prompt.sample is not None and said.text == prompt.sample.answer)
    return found


def prepared(asker: Asker, found: Sequence[Sample]) -> list[Batch]:
    """Questions in batches."""
    return [Batch.of(asker, group) for group in batches(of_benchmark(found, asker.side))]


def tasks_of(groups: Sequence[Batch]) -> list[str]:
    """The task of each question, in the order of the groups."""
    return [prompt.sample.task for batch in groups for prompt in batch.prompts if prompt.sample is not None]


def against(one: Sequence[Right], other: Sequence[Right]) -> dict[str, float]:
    """Points by which one is better than the other, each the mean of several draws, and half of the interval's width."""
    pairs = [fmean(a) - fmean(b) for a, b in zip(zip(*one), zip(*other))]
    half = NormalDist().inv_cdf(0.975) * stdev(pairs) / len(pairs) ** 0.5
    return {"points": 100 * fmean(pairs), "half": 100 * half}


def share(runs: Sequence[Right]) -> float:
    return 100 * fmean(map(fmean, runs))


def depth(asker: Asker, groups: Sequence[Batch]) -> dict[str, Any]:
    """By layer: accuracy of a tenth of the tokens, chosen in several ways, and of none; the ways against random ones."""
    whole, rows = right(asker, groups, None), []
    for layer in range(1, asker.host.layers):
        drawn = [right(asker, groups, Random(layer=layer, ratio=FEW, seed=seed)) for seed in DRAWS]
        none = right(asker, groups, VTW(layer=layer))
        row: dict[str, Any] = {"layer": layer, "random": share(drawn), "none": share([none])}
        row["image"] = against([whole], [none])
        methods = {"fastv": FastV(layer=layer, ratio=FEW), "v2drop": V2Drop(layers=(layer,), ratios=(FEW,))}
        for name, method in methods.items():
            try:
                one = right(asker, groups, method)
            except foveate.FoveateError:  # (there is no signal yet)
                continue
            row[name] = {"accuracy": share([one]), **against([one], drawn)}
        rows.append(row)
    return {"questions": len(whole), "keep": FEW, "stock": share([whole]), "layers": rows}


def by_group(tasks: Sequence[str], runs: Sequence[Right]) -> dict[str, list[Right]]:
    """Runs cut to the questions of each group of tasks."""
    return {
        group: [[hit for hit, task in zip(run, tasks) if task in members] for run in runs]
        for group, members in GROUPS.items()
    }


def abilities(asker: Asker, groups: Sequence[Batch]) -> dict[str, Any]:
    """By group of tasks: accuracy of the stock model, and what each method loses."""
    tasks, stock = tasks_of(groups), [right(asker, groups, None)]
    whole = by_group(tasks, stock)
    found: dict[str, Any] = {"keep": SOME, "questions": {g: len(runs[0]) for g, runs in whole.items()}}
    found["stock"] = {group: share(runs) for group, runs in whole.items()}
    found["methods"] = {}
    for name, method in ABILITIES.items():
        runs = by_group(tasks, [right(asker, groups, method)])
        found["methods"][name] = {g: {"accuracy": share(runs[g]), **against(runs[g], whole[g])} for g in GROUPS}
    return found


def positions(asker: Asker, groups: Sequence[Batch]) -> dict[str, Any]:
    """Grounding and attributes, with positions kept and numbered anew; and the share of survivors in the lower half."""
    tasks = tasks_of(groups)
    found: dict[str, dict[str, Any]] = {}
    for name, method in POSITIONS.items():
        kept = by_group(tasks, [right(asker, groups, method)])
        try:
            anew = by_group(tasks, [right(asker, groups, numbered_anew(method))])
        except foveate.FoveateError:  # (it frees caches as well, which have their positions)
            anew = {}
        found[name] = {"lower": lower_half(asker, groups, method)}
        for group in ("grounding", "attribute"):
            found[name][group] = {"keep": share(kept[group])}
            if anew:
                found[name][group] |= {"renumber": share(anew[group]), **against(anew[group], kept[group])}
    return {"keep": SOME, "layer": 1, "methods": found}


def numbered_anew(method: Method) -> Method:
    """The same method, whose survivors have the positions of a shorter prompt."""
    return replace(method, positions="renumber")


def lower_half(asker: Asker, groups: Sequence[Batch], method: Method) -> float:
    """Per cent of a method's survivors that are in the lower half of their image: 50 of what looks at nothing."""
    below = total = 0
    for batch in groups:
        with torch.inference_mode(), asker.attach(method) as handle, handle.trace() as recorded:
            asker.model(**batch.inputs, logits_to_keep=1)
            visit = next(each for each in recorded().sites if each.site.at == "decoder")
        for index, (height, width) in zip(visit.index.split(list(visit.after)), visit.shapes):
            below += int((index // width >= height / 2).sum())
            total += len(index)
    return 100 * below / total


def pairs_of_questions(count: int) -> Iterator[tuple[Sample, Sample]]:
    """Two questions about other objects of one image, each of another image."""
    for number in range(count):
        exhibit = make_exhibit("scene", split_seed("test", number))
        local = [question for question in exhibit.questions if question.task in LOCAL]
        first = next(iter(local[number % max(len(local), 1) :]), None)
        others = [q for q in local if first is not None and not {*q.evidence} & {*first.evidence}]
        if first is not None and others:
            yield tuple(_sample(exhibit, q, f"{number}-{turn}") for turn, q in enumerate((first, others[-1])))  # type: ignore[misc]


def _sample(exhibit: Exhibit, question: Question, name: str) -> Sample:
    images = tuple(picture.image for picture in exhibit.pictures)
    evidence = tuple(exhibit.under(question.evidence))
    return Sample(name, question.task, images, question.text, question.answer, CHOICES[question.task], evidence)


@torch.inference_mode()
def second_answers(asker: Asker, firsts: Sequence[Batch], seconds: Sequence[Batch], method: Method | None) -> Right:
    """Which second questions are answered rightly on the cache that the first has left, when that question is taken back."""
    found = []
    for first, second in zip(firsts, seconds):
        ids, wanted = first.inputs["input_ids"], second.inputs["input_ids"]
        words = int((ids != wanted).any(0).flip(0).nonzero().max()) + 1  # from the first word that differs on
        with asker.carrying(method):
            cache = asker.model(**first.inputs).past_key_values
            cache.crop(-words)
            told = {"input_ids": wanted[:, -words:], "attention_mask": second.inputs["attention_mask"]}
            if "mm_token_type_ids" in second.inputs:
                told["mm_token_type_ids"] = second.inputs["mm_token_type_ids"][:, -words:]
            logits = asker.model(**told, past_key_values=cache).logits[:, -1]
        said = asker.processor.batch_decode(logits.argmax(-1, keepdim=True), skip_special_tokens=True)
        found += [
            text == prompt.sample.answer for text, prompt in zip(said, second.prompts) if prompt.sample is not None
        ]
    return found


def turns(asker: Asker, count: int, batch: int = 16) -> dict[str, Any]:
    """Accuracy on a question about an image, alone, and on the cache that another question has left."""
    pairs = list(islice(pairs_of_questions(4 * count), count))
    firsts, seconds = (
        [Batch.of(asker, prompts[i : i + batch]) for i in range(0, len(prompts), batch)]
        for prompts in (of_benchmark(each, asker.side) for each in zip(*pairs))
    )
    found: dict[str, Any] = {}
    for name, method in {"stock": None, **TURNS}.items():
        alone, later = right(asker, seconds, method), second_answers(asker, firsts, seconds, method)
        found[name] = {"alone": share([alone]), "later": share([later]), **against([later], [alone])}
    return {"questions": len(pairs), "keep": SOME, "methods": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], help="all by default")
    parser.add_argument("--model", default="reference-llava")
    parser.add_argument("--per-task", type=int, default=25)
    parser.add_argument("--turns", type=int, default=200, help="pairs of questions")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began, asker = time.monotonic(), load_subject(options.model)
    drawn = cache(lambda *tasks: prepared(asker, samples("test", tasks=tasks, per_task=options.per_task)))
    parts = {
        "depth": lambda: depth(asker, drawn(*LOCAL)),
        "abilities": lambda: abilities(asker, drawn(*TASKS)),
        "positions": lambda: positions(asker, drawn(*GROUPS["grounding"], *GROUPS["attribute"])),
        "turns": lambda: turns(asker, options.turns),
    }
    if unknown := [part for part in options.parts if part not in parts]:
        parser.error(f"there is no part {unknown[0]!r}; there is {', '.join(parts)}")
    found: dict[str, Any] = {"model": options.model, "per_task": options.per_task}
    for name in options.parts or parts:
        found[name] = parts[name]()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    found |= {"seconds": time.monotonic() - began, "machine": machine(torch.device("cpu"))}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    else:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
