"""What a reference model can do, and what goes on inside; ``python -m foveate_reference.evaluate NAME`` prints it as JSON.

All questions of an exhibit are asked at once, in a forward pass that can hide visual tokens at any decoder layer, so the card
of a small model takes a few minutes, and that of `smollm2` longer (`seconds` says how long). ``foveate eval`` measures single
questions through the stock path.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from .batches import Batch, Recipe, make_batch
from .data import samples
from .exhibits import EXHIBITS
from .fast import FastForward
from .inside import inside
from .language import BaseMissingError, in_english, reading
from .model import MODELS, Model, Processor, load
from .scenes import split_seed
from .vocabulary import CORE, TASKS, WORDS

_BATCH = {"scene": 16, "chart": 16, "table": 16, "document": 4, "pair": 8, "video": 4}
_SHARE = {"scene": 1.0, "chart": 1.0, "table": 0.5, "document": 0.125, "pair": 0.5, "video": 0.5}
PER_TASK = 2
"""Questions of each core task whose forward is looked into."""
Hits = dict[str, list[float]]


def exhibits(split: str, images: int) -> list[Batch]:
    """Batches of every kind: `images` scenes, and of the others as many as give their tasks some hundred questions."""
    found = []
    for kind in EXHIBITS:
        count = max(1, int(images * _SHARE[kind]))
        recipes = [Recipe(kind, split_seed(split, index)) for index in range(count)]
        found += [make_batch(recipes[i : i + _BATCH[kind]]) for i in range(0, count, _BATCH[kind])]
    return found


@torch.no_grad()
def accuracy(
    fast: FastForward, batches: Sequence[Batch], *, leave_at: int | None = None, blind: bool = False
) -> dict[str, float]:
    """Share of right answers by task.

    Parameters
    ----------
    fast : FastForward
    batches : sequence of Batch
        From `exhibits`.
    leave_at : int, optional
        All visual tokens leave the decoder before this layer.
    blind : bool
        Show grey images.
    """
    return _mean([_hits(fast, batch, _see(fast, batch, blind), [leave_at])[0] for batch in batches])


@torch.no_grad()
def layer_profile(fast: FastForward, batches: Sequence[Batch]) -> list[dict[str, float]]:
    """Accuracy by task when all visual tokens leave the decoder before layer 0, 1, ..., L (the last: never)."""
    layers = range(len(fast.decoder.layers) + 1)
    found = [_hits(fast, batch, _see(fast, batch), layers) for batch in batches]
    return [_mean([hits[layer] for hits in found]) for layer in layers]


def _see(fast: FastForward, batch: Batch, blind: bool = False) -> Tensor:
    images = batch.images.to(fast.device)
    return fast.see(torch.full_like(images, 128) if blind else images)


def _hits(fast: FastForward, batch: Batch, visual: Tensor, layers: Sequence[int | None]) -> list[Hits]:
    batch = Batch(*(tensor.to(fast.device) for tensor in batch))
    layout, asked = fast.layout(tuple(batch.images.shape)), batch.questions.shape[1]
    found = []
    for layer in layers:
        masks = None if layer is None else fast.leave_at(layer, layout, asked)
        first = batch.answers[:, 0].clamp(min=0)
        guesses = fast.read(visual, batch.questions, first, layout, masks=masks)[0].argmax(-1)
        right = (guesses == batch.answers).float()
        found.append({task: right[batch.tasks == number].tolist() for number, task in enumerate(TASKS)})
    return found


def _mean(found: Sequence[Hits]) -> dict[str, float]:
    joined = {task: [hit for hits in found for hit in hits[task]] for task in TASKS}
    return {task: sum(hits) / len(hits) if hits else float("nan") for task, hits in joined.items()}


def measure(model: Model, processor: Processor, images: int | None = None) -> dict[str, object]:
    """The numbers of a model card, on the test split: the content of ``metrics.json``.

    Parameters
    ----------
    model, processor
        Of `foveate_reference.load`.
    images : int, optional
        Scenes; of other exhibits there are as many as give their tasks enough questions. By default 128, of `smollm2` 32.
    """
    began = time.monotonic()
    if is_small(processor):
        fast, batches = FastForward(model), exhibits("test", images or 128)
        profile, blind = layer_profile(fast, batches), accuracy(fast, batches, blind=True)
        questions = {task: sum(int((batch.tasks == i).sum()) for batch in batches) for i, task in enumerate(TASKS)}
    else:
        assert isinstance(model, LlavaForConditionalGeneration)
        assert isinstance(processor, LlavaProcessor)
        asked = reading.asked(processor, "test", images or 32, _SHARE)
        profile, blind = reading.layer_profile(model, asked), reading.accuracy(model, asked, blind=True)
        questions = {task: sum(each.tasks.count(task) for each in asked) for task in TASKS}
    looked_at = samples("test", tasks=CORE, per_task=PER_TASK)
    if not is_small(processor):
        looked_at = [in_english(sample) for sample in looked_at]
    return {
        "accuracy": _rounded(profile[-1]),
        "accuracy_blind": _rounded(blind),
        "accuracy_when_visual_tokens_leave_at_layer": [_rounded(each) for each in profile],
        "questions": questions,
        "reads": reads(profile),
        "inside": _short(inside(model, processor, looked_at)),
        "seconds": round(time.monotonic() - began),
    }


def is_small(processor: Processor) -> bool:
    """Whether a model speaks the closed vocabulary of the benchmark."""
    return bool(processor.tokenizer.get_vocab().keys() >= set(WORDS))


def reads(profile: Sequence[dict[str, float]]) -> dict[str, int] | None:
    """Which layers read the image: the first, and the last, without which a tenth of what the image is worth is missing.

    `profile` is accuracy by task when all visual tokens leave before layer 0, 1, ..., L (the last: never). None: the image
    is worth less than five points, so nothing can be said.
    """
    means = [
        fmean(value for value in each.values() if value == value) for each in profile
    ]  # of a task without questions it is nan
    worth = means[-1] - means[0]
    if not worth >= 0.05:
        return None
    first = next(layer for layer in range(len(means) - 1) if means[layer + 1] > means[0] + 0.1 * worth)
    last = next(layer for layer in reversed(range(len(means) - 1)) if means[layer] < means[-1] - 0.1 * worth)
    return {"first": first, "last": last}


def _rounded(accuracies: dict[str, float]) -> dict[str, float]:
    """Without tasks that few images have no question for."""
    return {task: round(value, 3) for task, value in accuracies.items() if value == value}


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """With four digits of each number."""
    layers = [{name: float(f"{value:.4g}") for name, value in layer.items()} for layer in found["layers"]]
    return {**found, "layers": layers}


def main(words: Sequence[str]) -> None:
    """Print the card of the model that is named, or of the folder of a training run."""
    parser = argparse.ArgumentParser(prog="python -m foveate_reference.evaluate", description=main.__doc__)
    parser.add_argument("name", nargs="?", default=MODELS[0], help=f"{', '.join(MODELS)}, or a folder")
    parser.add_argument("--images", type=int, help="scenes; by default 128, of smollm2 32")
    asked = parser.parse_args(words)
    try:
        model, processor = load(asked.name)
    except (ValueError, BaseMissingError) as error:
        parser.error(str(error))
    print(json.dumps(measure(model, processor, asked.images), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
