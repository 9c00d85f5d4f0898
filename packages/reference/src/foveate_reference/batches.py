"""Training batches: exhibits, questions as token ids, labels for the auxiliary losses; made ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .drawing import KINDS, Picture
from .exhibits import EXHIBITS, Exhibit, make_exhibit
from .model import TOKEN_ID
from .vocabulary import CELL, COLORS, DIGITS, LETTERS, LEXICON, SIZE, TASKS, TEXTURES

IGNORED = -100
GRID = SIZE // CELL
_TEXTS = (*LETTERS, *DIGITS, *LEXICON)
LABEL_SIZES = (
    *(1 + len(KINDS), 1 + len(COLORS), 1 + len(_TEXTS), 1 + len(_TEXTS)),
    *(GRID, GRID, 2, len(TEXTURES)),
)
"""Classes of each dense label of a cell: kind, colour, text and link of the object there (0: none), column and row of
the cell that holds the object's anchor, whether it is this one, texture of the background."""
_COLUMN, _ROW, _HOLDS_ANCHOR = 4, 5, 6


class Batch(NamedTuple):
    """B exhibits of n images with Q questions each; cells are those of the images, ``(h, w) = (H // 16, W // 16)``.

    Attributes
    ----------
    images : uint8 (B, n, H, W, 3)
    labels : int64 (B, 8, n, h, w)
        See `LABEL_SIZES`; -100 where a label makes no sense.
    questions : int64 (B, Q, 4)
        Token ids; zeros where an exhibit has fewer than Q questions.
    answers : int64 (B, Q)
        Token ids; -100 where there is no question.
    tasks : int64 (B, Q)
        Index into `TASKS`; -1 where there is no question.
    pointers : bool (B, Q, 2, n, h, w)
        The cells of the first and of the last object a question is about; for `count`, the central cell of each.
    """

    images: Tensor
    labels: Tensor
    questions: Tensor
    answers: Tensor
    tasks: Tensor
    pointers: Tensor


class Recipe(NamedTuple):
    """An exhibit to be made; see `make_exhibit`."""

    kind: str
    seed: int
    simple: bool = False


def make_batch(recipes: Sequence[Recipe]) -> Batch:
    """The batch of these exhibits, whose images must agree in number and size."""
    exhibits = [make_exhibit(*recipe[:2], simple=recipe.simple) for recipe in recipes]
    most = max(EXHIBITS[recipe.kind] for recipe in recipes)
    size, cells = len(exhibits), _owners(exhibits[0]).shape
    labels = np.stack([np.stack([_labels(p) for p in exhibit.pictures], 1) for exhibit in exhibits])
    questions = np.zeros((size, most, 4), np.int64)
    answers = np.full((size, most), IGNORED, np.int64)
    tasks = np.full((size, most), -1, np.int64)
    pointers = np.zeros((size, most, 2, *cells), bool)
    for row, exhibit in enumerate(exhibits):
        owner = _owners(exhibit)
        holds_anchor = labels[row, _HOLDS_ANCHOR] > 0
        for column, question in enumerate(exhibit.questions):
            questions[row, column] = [TOKEN_ID[word] for word in question.text.split()]
            answers[row, column] = TOKEN_ID[question.answer]
            tasks[row, column] = TASKS.index(question.task)
            if question.task == "count":
                pointers[row, column] = np.isin(owner, question.about) & holds_anchor
            elif question.about:
                pointers[row, column, 0] = owner == question.about[0]
                pointers[row, column, 1] = owner == question.about[-1]
    images = np.stack([np.stack([picture.image for picture in exhibit.pictures]) for exhibit in exhibits])
    return Batch(*map(torch.from_numpy, (images, labels, questions, answers, tasks, pointers)))


def _owners(exhibit: Exhibit) -> NDArray[np.int64]:
    """For each cell the number of the object there, counted over all pictures, or -1; (n, h, w)."""
    first, owners = 0, []
    for picture in exhibit.pictures:
        owner = picture.owner
        owners.append(np.where(owner >= 0, owner + first, -1))
        first += len(picture.objects)
    return np.stack(owners)


def _labels(picture: Picture) -> NDArray[np.int64]:
    """Dense labels (8, h, w) of a picture."""
    index = picture.owner + 1
    here = np.stack(np.meshgrid(np.arange(index.shape[1]), np.arange(index.shape[0])))  # column, row
    what, anchors = [(0, 0, 0, 0)], [(-1, -1)]
    for thing in picture.objects:
        color = 0 if thing.color is None else 1 + list(COLORS).index(thing.color)
        text, link = (0 if word is None else 1 + _TEXTS.index(word) for word in (thing.text, thing.link))
        what.append((1 + KINDS.index(thing.kind), color, text, link))
        x, y = thing.center
        anchors.append((int(x) // CELL, thing.box[1] // CELL if thing.kind == "bar" else int(y) // CELL))
    anchor = np.where(index > 0, np.array(anchors)[index].transpose(2, 0, 1), here)
    holds_anchor = ((anchor == here).all(0) & (index > 0)).astype(np.int64)
    if index.shape[0] > GRID:
        anchor = np.full_like(anchor, IGNORED)
    on_paper = any(thing.kind in ("bar", "text") for thing in picture.objects)
    texture = np.full(index.shape, IGNORED if on_paper else TEXTURES.index(picture.texture))
    return np.concatenate((np.array(what)[index].transpose(2, 0, 1), anchor, holds_anchor[None], texture[None]))


def batches_ahead(plan: Iterable[Sequence[Recipe]], ahead: int = 4) -> Iterator[Batch]:
    """The batches of a plan, made by a thread while earlier ones are used."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Batch]] = deque()
        for recipes in plan:
            waiting.append(pool.submit(make_batch, recipes))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
