"""Training batches: scenes, questions as token ids, labels for the auxiliary losses; made ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .model import TOKEN_ID
from .scenes import (
    CELL,
    CHARACTERS,
    COLORS,
    GRID,
    MAX_QUESTIONS,
    SHAPES,
    TASKS,
    TEXTURES,
    Scene,
    ask,
    make_scene,
)

_KINDS = (*SHAPES, "box")
LABEL_SIZES = (1 + len(_KINDS), 1 + len(COLORS), 1 + len(CHARACTERS), GRID, GRID, 2, len(TEXTURES))
"""Classes of each dense label of a cell: kind, colour and character of the object there (0: none), column
and row of the cell that holds the object's centre, whether it is this one, texture of the background."""

_AT_CENTER = 5


class Batch(NamedTuple):
    """B images with Q questions each.

    Attributes
    ----------
    images : uint8 (B, 160, 160, 3)
    labels : int64 (B, 7, 100)
        See `LABEL_SIZES`.
    questions : int64 (B, Q, 4)
        Token ids; zeros where an image has fewer than Q questions.
    answers : int64 (B, Q)
        Token ids; -100 where there is no question.
    tasks : int64 (B, Q)
        Index into `TASKS`; -1 where there is no question.
    pointers : bool (B, Q, 2, 100)
        The cells of the first and of the last object a question is about; for `count`, the central cell
        of each.
    """

    images: Tensor
    labels: Tensor
    questions: Tensor
    answers: Tensor
    tasks: Tensor
    pointers: Tensor


def make_batch(seeds: list[int], *, simple: bool = False) -> Batch:
    """The batch of the scenes with these seeds."""
    size = len(seeds)
    scenes = [make_scene(seed, simple=simple) for seed in seeds]
    labels = np.stack([_labels(scene) for scene in scenes])
    questions = np.zeros((size, MAX_QUESTIONS, 4), np.int64)
    answers = np.full((size, MAX_QUESTIONS), -100, np.int64)
    tasks = np.full((size, MAX_QUESTIONS), -1, np.int64)
    pointers = np.zeros((size, MAX_QUESTIONS, 2, GRID * GRID), bool)
    for row, (scene, seed) in enumerate(zip(scenes, seeds, strict=True)):
        owner = scene.owner.ravel()
        at_center = labels[row, _AT_CENTER] > 0
        for column, question in enumerate(ask(scene, seed)):
            questions[row, column] = [TOKEN_ID[word] for word in question.text.split()]
            answers[row, column] = TOKEN_ID[question.answer]
            tasks[row, column] = TASKS.index(question.task)
            if question.task == "count":
                pointers[row, column] = np.isin(owner, question.about) & at_center
            elif question.about:
                pointers[row, column] = owner == np.array([[question.about[0]], [question.about[-1]]])
    images = np.stack([scene.image for scene in scenes])
    return Batch(*map(torch.from_numpy, (images, labels, questions, answers, tasks, pointers)))


def _labels(scene: Scene) -> NDArray[np.int64]:
    """Dense labels (7, 100) of a scene."""
    here = np.stack(np.meshgrid(np.arange(GRID), np.arange(GRID)))  # column, row
    colors = list(COLORS)
    answers = [(0, 0, 0)]
    centers = [(-1, -1)]
    for thing in scene.objects:
        letter = 0 if thing.letter is None else 1 + CHARACTERS.index(thing.letter)
        answers.append((1 + _KINDS.index(thing.kind), 1 + colors.index(thing.color), letter))
        centers.append((int(thing.center[0]) // CELL, int(thing.center[1]) // CELL))
    index = scene.owner.astype(np.int64) + 1
    what = np.array(answers)[index].transpose(2, 0, 1)
    center = np.array(centers)[index].transpose(2, 0, 1)
    center = np.where(index > 0, center, here)
    at_center = ((center == here).all(0) & (index > 0)).astype(np.int64)
    texture = np.full((GRID, GRID), TEXTURES.index(scene.texture))
    return np.concatenate((what, center, at_center[None], texture[None])).reshape(len(LABEL_SIZES), -1)


def batches_ahead(plan: Sequence[tuple[list[int], bool]], ahead: int = 4) -> Iterator[Batch]:
    """The batches of a plan, a sequence of (seeds, simple), made by a thread while earlier ones are used."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Batch]] = deque()
        for seeds, simple in plan:
            waiting.append(pool.submit(make_batch, seeds, simple=simple))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
