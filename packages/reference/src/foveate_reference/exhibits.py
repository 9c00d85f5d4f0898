"""Exhibits: what is shown at once, one or several pictures, with all questions about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .boards import make_chart, make_document, make_table
from .drawing import Object, Picture
from .scenes import MAX_QUESTIONS, Question, ask, make_scene
from .sequences import make_pair, make_video

EXHIBITS = {"scene": MAX_QUESTIONS, "chart": 2, "table": 16, "document": 24, "pair": 7, "video": 4}
"""The kinds, and how many questions one has at most."""
KIND_OF = {
    "chart": "chart",
    "table": "table",
    "document": "document",
    "pair": "pair",
    "move": "video",
    "appear": "video",
}
"""The kind that a task is asked about; all others are asked about scenes."""


@dataclass(frozen=True, eq=False)
class Exhibit:
    """Pictures and the questions about them.

    Attributes
    ----------
    pictures : tuple of Picture
        All of one size.
    questions : list of Question
        Object indices count on from one picture to the next.
    """

    pictures: tuple[Picture, ...]
    questions: list[Question]

    @property
    def objects(self) -> tuple[Object, ...]:
        """The objects of all pictures."""
        return tuple(thing for picture in self.pictures for thing in picture.objects)

    def under(self, objects: tuple[int, ...]) -> NDArray[np.float32]:
        """How much of each cell the objects cover, (pictures, rows, columns).

        Relative to the cell that an object covers most: 1 there, 0 where no object is. So the best cells of all
        objects come before the second best of any.
        """
        found = np.zeros((len(self.pictures), *self.pictures[0].coverage.shape[1:]), np.float32)
        first = 0
        for number, picture in enumerate(self.pictures):
            for index in objects:
                if 0 <= index - first < len(picture.objects):
                    share = picture.coverage[index - first] / max(picture.coverage[index - first].max(), 1)
                    found[number] = np.maximum(found[number], share)
            first += len(picture.objects)
        return found


def make_exhibit(kind: str, seed: int, *, simple: bool = False) -> Exhibit:
    """The exhibit of a kind and a seed.

    Parameters
    ----------
    kind : str
        A key of `EXHIBITS`.
    seed : int
        See `split_seed`.
    simple : bool
        Simple scenes, see `make_scene`.
    """
    if kind == "scene":
        scene = make_scene(seed, simple=simple)
        return Exhibit((scene,), ask(scene, seed))
    if kind == "pair":
        return Exhibit(*make_pair(seed, simple=simple))
    if kind == "video":
        return Exhibit(*make_video(seed))
    picture, questions = {"chart": make_chart, "table": make_table, "document": make_document}[kind](seed)
    return Exhibit((picture,), questions)
