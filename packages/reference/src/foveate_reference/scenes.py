"""Scenes: coloured shapes, and characters, digits and words in coloured boxes, on textures and photographs.

Every question has one right answer of one word, derived from what was drawn:

========  ======================  ================================================
task      question                answer
========  ======================  ================================================
color     color of circle ?       a colour; the shape occurs once
shape     shape of red ?          a shape; one shape (boxes aside) is red
count     count of red ?          zero ... six, boxes included
exist     exist red circle ?      yes / no; the colour and the shape both occur
where     where is circle ?       a quadrant of the image
side      side circle star ?      left / right: the circle, seen from the star
height    height circle star ?    above / below: likewise
read      read in red ?           the printed character in the red box
texture   texture of background ? a texture, or photo
digit     digit in red ?          the handwritten digit in the red box
word      word in red ?           the word of 2 to 4 small letters in the red box
cell      cell of circle ?        a field of a 3 x 3 grid
odd       odd one color ?         colour of the one shape that is not like the others
absent    see any circle ?        yes / no
========  ======================  ================================================

A scene takes about 1.5 ms to draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .assets import assets
from .drawing import Canvas, Picture, digit_mask, padded, text_mask, textured
from .vocabulary import CELL, CELLS, COLORS, CORE, DIGITS, LETTERS, LEXICON, NUMBERS, QUADRANTS, SHAPES, SIZE, TEXTURES

SPLITS = {"train": (0, 1 << 30), "validation": (1 << 30, 1 << 20), "test": ((1 << 30) + (1 << 20), 1 << 20)}
"""First seed and number of seeds of each split; the ranges do not overlap."""

_BOX_SIDES = (22, 25, 28)
_WORD_HEIGHTS = (14, 16, 18)


@dataclass(frozen=True)
class Question:
    """A question about a picture or several.

    Attributes
    ----------
    task : str
        A word of `TASKS`.
    text : str
        Four words of `WORDS`, separated by blanks.
    answer : str
        One word of ``CHOICES[task]``.
    about : tuple of int
        Indices of the objects the answer names or counts, in the order they are named; empty when it is about the
        background or about something absent. Objects of several pictures are numbered on.
    evidence : tuple of int
        Indices of all objects that one must see to be sure; `about` and, for a *no*, what might have been meant.
    """

    task: str
    text: str
    answer: str
    about: tuple[int, ...]
    evidence: tuple[int, ...]


def split_seed(split: str, index: int) -> int:
    """Seed number `index` of a split; splits never share a seed.

    >>> split_seed("train", 3), split_seed("test", 0) > split_seed("train", 10**9)
    (3, True)
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    first, count = SPLITS[split]
    if not 0 <= index < count:
        raise ValueError(f"seed {index} is outside the {split} split, which has {count}")
    return first + index


def split_of(seed: int) -> str:
    """The split that a seed belongs to."""
    for split, (first, count) in SPLITS.items():
        if first <= seed < first + count:
            return split
    raise ValueError(f"seed {seed} is in no split; see split_seed")


def make_scene(seed: int, *, simple: bool = False) -> Picture:
    """Draw the scene of a seed.

    One scene in five has many objects of one colour, one in five an odd one out.

    Parameters
    ----------
    seed : int
        See `split_seed`; it also decides whose photographs, fonts and digits are used.
    simple : bool
        One to three shapes, two boxes and no clutter; used early in training.
    """
    rng = np.random.RandomState(seed)
    texture = TEXTURES[-1] if rng.randint(2) else TEXTURES[rng.randint(len(TEXTURES) - 1)]
    canvas = textured(split_of(seed), rng, texture)
    if not simple:
        canvas.clutter(int(rng.choice((0, 4, 8))))
    names = list(COLORS)
    theme = rng.choice(("any", "any", "any", "many", "odd"))
    free = [names[i] for i in rng.permutation(len(names))]
    for color in free[: 2 if simple or theme != "any" else 3]:
        _add_box(canvas, color)
    palette = [names[i] for i in rng.permutation(len(names))[: rng.randint(3, 6)]]
    kinds = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    number = int(rng.randint(1, 4) if simple else rng.randint(3, 8) if theme == "any" else rng.randint(4, 8))
    sides = (20, 23, 26, 29) if theme == "any" else (16, 18, 20, 22)
    odd = rng.randint(number)
    for i in range(number):
        color, kind = str(rng.choice(palette)), SHAPES[rng.randint(len(SHAPES))]
        if theme == "many" and rng.randint(6):
            color = palette[0]
        if theme == "odd":
            kind = kinds[i == odd]
        side = int(rng.choice(sides))
        corner = canvas.place(side, side)
        if corner is not None and sum(thing.color == color for thing in canvas.objects) < len(NUMBERS) - 1:
            canvas.shape(kind, color, side, corner)
    return canvas.finish()


def _add_box(canvas: Canvas, color: str) -> None:
    """A printed character, a handwritten digit or a word in a box, if there is room."""
    rng, split = canvas.rng, canvas.split
    kind = str(rng.choice(("box", "box", "digit", "plate")))
    font = rng.randint(len(assets(split).fonts))
    side = int(rng.choice(_BOX_SIDES))
    if kind == "digit":
        number = int(rng.randint(len(assets(split).digits)))
        text, ink = DIGITS[assets(split).digit_labels[number]], digit_mask(split, number, side)
    elif kind == "box":
        text = (*LETTERS, *DIGITS)[rng.randint(len(LETTERS) + len(DIGITS))]
        ink = padded(text_mask(split, font, text, side), side, side)
    else:
        text = LEXICON[rng.randint(len(LEXICON))]
        ink = text_mask(split, font, text, int(rng.choice(_WORD_HEIGHTS)))
        ink = padded(ink, ink.shape[0] + 2, ink.shape[1] + 4)
    corner = canvas.place(ink.shape[1], ink.shape[0])
    if corner is not None:
        canvas.boxed(kind, color, ink, text, corner)


_LIMITS = dict(color=2, shape=2, count=3, exist=2, where=1, side=2, height=2, read=3, texture=1)
_LIMITS |= dict(digit=3, word=3, cell=2, odd=1, absent=2)
MAX_QUESTIONS = 24
"""No scene has more questions than this."""


def ask(scene: Picture, seed: int) -> list[Question]:
    """Questions about a scene, in random order: at most 24, as many per task as the scene allows.

    Parameters
    ----------
    scene : Picture
        From `make_scene`.
    seed : int
        Chooses among the possible questions; the scene's own seed will do.
    """
    rng = np.random.RandomState(seed ^ 0x5EED)
    things = scene.objects
    shapes = [i for i, thing in enumerate(things) if thing.kind in SHAPES]
    by_kind = {kind: [i for i in shapes if things[i].kind == kind] for kind in SHAPES}
    by_color = {color: [i for i in shapes if things[i].color == color] for color in COLORS}
    lone = [found[0] for found in by_kind.values() if len(found) == 1]
    asked: dict[str, list[Question]] = {task: [] for task in CORE}

    def add(task: str, text: str, answer: str, about: list[int], evidence: list[int] | None = None) -> None:
        asked[task].append(Question(task, f"{text} ?", answer, tuple(about), tuple(evidence or about)))

    add("texture", "texture of background", scene.texture, [])
    for i, thing in enumerate(things):
        task = {"box": "read", "digit": "digit", "plate": "word"}.get(thing.kind)
        if task is not None and thing.text is not None:
            add(task, f"{task} in {thing.color}", thing.text, [i])
    for i in lone:
        add("color", f"color of {things[i].kind}", str(things[i].color), [i])
        x, y = things[i].center
        if abs(x - SIZE / 2) > 6 and abs(y - SIZE / 2) > 6:
            add("where", f"where is {things[i].kind}", QUADRANTS[2 * (y > SIZE / 2) + (x > SIZE / 2)], [i])
        if all(abs(value - edge * SIZE / 3) > 4 for value in (x, y) for edge in (1, 2)):
            add("cell", f"cell of {things[i].kind}", CELLS[int(3 * y // SIZE) * 3 + int(3 * x // SIZE)], [i])
        for j in lone:
            other_x, other_y = things[j].center
            pair = f"{things[i].kind} {things[j].kind}"
            if abs(x - other_x) >= CELL:
                add("side", f"side {pair}", "left" if x < other_x else "right", [i, j])
            if abs(y - other_y) >= CELL:
                add("height", f"height {pair}", "above" if y < other_y else "below", [i, j])
    for color, found in by_color.items():
        if len(found) == 1:
            add("shape", f"shape of {color}", things[found[0]].kind, found)
        for kind, same in by_kind.items():
            if found and same:
                both = [i for i in found if i in same]
                add("exist", f"exist {color} {kind}", "yes" if both else "no", both, sorted({*found, *same}))
        counted = [i for i, thing in enumerate(things) if thing.color == color]
        add("count", f"count of {color}", NUMBERS[len(counted)], counted)
    for kind, found in by_kind.items():
        add("absent", f"see any {kind}", "yes" if found else "no", found)
    groups = sorted((found for found in by_kind.values() if found), key=len)
    if len(groups) == 2 and len(groups[0]) == 1 and len(groups[1]) > 2:
        add("odd", "odd one color", str(things[groups[0][0]].color), groups[0], shapes)

    chosen: list[Question] = []
    for task, questions in asked.items():
        order = [questions[i] for i in rng.permutation(len(questions))]
        if task in ("count", "exist", "absent"):
            order = _balanced(order, _LIMITS[task])
        chosen += order[: _LIMITS[task]]
    return [chosen[i] for i in rng.permutation(len(chosen))][:MAX_QUESTIONS]


def _balanced(questions: list[Question], limit: int) -> list[Question]:
    """Take questions in turn from each answer, so that the common answer does not win."""
    by_answer: dict[str, list[Question]] = {}
    for question in questions:
        by_answer.setdefault(question.answer, []).append(question)
    if len(by_answer) == 1:
        return questions[:1]
    rounds = range(max(map(len, by_answer.values())))
    return [found[r] for r in rounds for found in by_answer.values() if r < len(found)][:limit]
