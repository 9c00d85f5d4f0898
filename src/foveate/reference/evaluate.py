"""Accuracy on the procedural scenes; ``python -m foveate.reference.evaluate`` measures the shipped model.

`evaluate` goes through the stock path (processor, ``generate``), one question per sequence, and so measures
any model object that keeps this interface, compressed or not. `layer_profile` and `uniform_keep` ask when
and how densely the image is needed, through attention masks of the fast forward pass, for the reference
model only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.processing_utils import ProcessorMixin

from .batches import Batch, make_batch
from .fast import VISUAL, FastForward
from .model import load
from .scenes import GRID, MAX_QUESTIONS, TASKS, Question, Scene, ask, make_scene, split_seed

_SCENES_PER_SEED = 20_000


@dataclass(frozen=True, eq=False)
class Example:
    """One question about one scene."""

    scene: Scene
    question: Question


def examples(*, split: str = "test", per_task: int = 200, seed: int = 0, tasks: Sequence[str] = TASKS) -> list[Example]:
    """A fixed benchmark: for each task, `per_task` questions about as many scenes.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"`` or ``"test"``.
    per_task : int
        Questions per task; the standard error of an accuracy of 0.9 is 0.021 with 200.
    seed : int
        Another seed, below 50, takes other scenes of the split.
    tasks : sequence of str
        Words of `TASKS`.
    """
    wanted = dict.fromkeys(tasks, per_task)
    index = seed * _SCENES_PER_SEED
    found = []
    while any(wanted.values()):
        scene_seed = split_seed(split, index)
        scene = make_scene(scene_seed)
        first = {question.task: question for question in reversed(ask(scene, scene_seed))}
        for task in tasks:
            if task in first and wanted[task]:
                wanted[task] -= 1
                found.append(Example(scene, first[task]))
        index += 1
    return found


@torch.no_grad()
def evaluate(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: ProcessorMixin,
    *,
    split: str = "test",
    per_task: int = 200,
    seed: int = 0,
    batch_size: int = 32,
    blind: bool = False,
) -> dict[str, float]:
    """Share of questions whose generated answer is right, by task.

    Parameters
    ----------
    model : PreTrainedModel
        The reference model, or whatever answers ``generate`` like it.
    processor : ProcessorMixin
        See `foveate.reference.load`.
    split, per_task, seed
        See `examples`.
    batch_size : int
        Sequences per call of ``generate``.
    blind : bool
        Show a grey image instead: what can be guessed from the question alone.
    """
    right: dict[str, list[bool]] = {task: [] for task in TASKS}
    todo = examples(split=split, per_task=per_task, seed=seed)
    for start in range(0, len(todo), batch_size):
        chunk = todo[start : start + batch_size]
        images = [np.full_like(e.scene.image, 128) if blind else e.scene.image for e in chunk]
        for example, answer in zip(chunk, answer_questions(model, processor, images, chunk), strict=True):
            right[example.question.task].append(answer == example.question.answer)
    return {task: float(np.mean(hits)) for task, hits in right.items()}


def answer_questions(
    model: Any,
    processor: ProcessorMixin,
    images: Sequence[NDArray[np.uint8]],
    asked: Sequence[Example],
) -> list[str]:
    """One generated word for each image and question; see `evaluate`."""
    chats: list[Any] = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question.text}]}]
        for example in asked
    ]
    text = processor.apply_chat_template(chats, add_generation_prompt=True)
    inputs = processor(text=text, images=list(images), return_tensors="pt", padding=True).to(model.device)
    output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    words: list[str] = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :])
    return words


def layer_profile(
    model: Qwen2_5_VLForConditionalGeneration, *, images: int = 256, seed: int = 0
) -> list[dict[str, float]]:
    """Accuracy by task when all visual tokens leave the decoder before layer 0, 1, ..., L (the last: never).

    Parameters
    ----------
    model : Qwen2_5_VLForConditionalGeneration
        The reference model.
    images : int
        Scenes of the test split, with all their questions.
    seed : int
        See `examples`.
    """
    fast, batch, visual = _seen(model, images, seed)
    layers = len(model.model.language_model.layers)
    return [accuracy(fast, batch, visual, fast.leave_at(layer)) for layer in range(layers + 1)]


def uniform_keep(
    model: Qwen2_5_VLForConditionalGeneration,
    *,
    keep: Sequence[int] = (50, 25, 10),
    images: int = 256,
    seed: int = 0,
) -> dict[int, dict[str, float]]:
    """Accuracy by task when only `keep` of the 100 visual tokens, spread evenly, enter the decoder."""
    fast, batch, visual = _seen(model, images, seed)
    return {number: accuracy(fast, batch, visual, fast.keep(spread(number))) for number in keep}


def spread(number: int) -> Tensor:
    """Indices of `number` of the 100 visual tokens: checkerboard (50), one in 2 x 2 (25), else in line."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    if number == VISUAL // 2:
        return ((rows + columns) % 2 == 0).flatten().nonzero()[:, 0]
    if number == VISUAL // 4:
        return ((rows % 2 == 0) & (columns % 2 == 0)).flatten().nonzero()[:, 0]
    return ((torch.arange(number) + 0.5) * VISUAL / number).long()


@torch.no_grad()
def accuracy(fast: FastForward, batch: Batch, visual: Tensor, masks: list[Tensor] | None = None) -> dict[str, float]:
    """Share of right answers by task with the fast forward pass.

    Parameters
    ----------
    fast : FastForward
    batch : Batch
    visual : float (B, 100, hidden)
        What ``fast.see(batch.images)`` returns.
    masks : list of bool (tokens, tokens), optional
        See `FastForward.read`.
    """
    chunks = zip(visual.split(32), batch.questions.split(32), batch.answers.split(32), strict=True)
    guesses = torch.cat([fast.read(v, q, a[:, 0], masks=masks)[0].argmax(-1) for v, q, a in chunks])
    right = (guesses == batch.answers).float()
    return {task: right[batch.tasks == number].mean().item() for number, task in enumerate(TASKS)}


@torch.no_grad()
def _seen(model: Qwen2_5_VLForConditionalGeneration, images: int, seed: int) -> tuple[FastForward, Batch, Tensor]:
    """Fast forward pass, test batch and its visual tokens."""
    fast = FastForward(model, MAX_QUESTIONS)
    first = seed * _SCENES_PER_SEED
    batch = make_batch([split_seed("test", index) for index in range(first, first + images)])
    return fast, batch, torch.cat([fast.see(chunk) for chunk in batch.images.split(32)])


def measure() -> dict[str, object]:
    """All numbers of the model card; takes a few minutes."""
    model, processor = load()
    return {
        "accuracy": evaluate(model, processor),
        "accuracy_blind": evaluate(model, processor, blind=True),
        "accuracy_when_visual_tokens_leave_at_layer": layer_profile(model),
        "accuracy_with_uniform_visual_tokens": uniform_keep(model),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
