"""What a reference model can do, through the fast forward pass; ``python -m foveate_reference.evaluate NAME``.

The fast pass asks all questions of an exhibit at once and can hide visual tokens at any decoder layer, so the whole
card of a model takes a few minutes. ``foveate eval`` measures single questions through the stock path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from .batches import Batch, Recipe, make_batch
from .exhibits import EXHIBITS
from .fast import FastForward
from .model import PATHS, Model, load
from .scenes import split_seed
from .vocabulary import TASKS

_BATCH = {"scene": 16, "chart": 16, "table": 16, "document": 4, "pair": 8, "video": 4}
_SHARE = {"scene": 1.0, "chart": 1.0, "table": 0.5, "document": 0.125, "pair": 0.5, "video": 0.5}
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


def measure(model: Model, images: int = 128) -> dict[str, object]:
    """The numbers of a model card, on the test split: the content of ``metrics.json``."""
    fast, batches = FastForward(model), exhibits("test", images)
    profile = [_rounded(accuracies) for accuracies in layer_profile(fast, batches)]
    return {
        "accuracy": profile[-1],
        "accuracy_blind": _rounded(accuracy(fast, batches, blind=True)),
        "accuracy_when_visual_tokens_leave_at_layer": profile,
    }


def _rounded(accuracies: dict[str, float]) -> dict[str, float]:
    return {task: round(value, 3) for task, value in accuracies.items()}


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else next(iter(PATHS))
    print(json.dumps(measure(load(name)[0]), indent=2))
