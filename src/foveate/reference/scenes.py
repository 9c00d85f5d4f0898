"""Procedural scenes with questions: an endless visual question answering benchmark that needs no download.

A scene is a 160 x 160 image with two or three *lettered boxes* (a character in a coloured box) and a few
coloured shapes on a textured, noisy background. Every question has one right answer of one word, derived
from how the scene was drawn:

========  ======================  ==========================================
task      question                answers
========  ======================  ==========================================
color     color of circle ?       a colour; the shape occurs once
shape     shape of red ?          a shape; one shape (boxes aside) is red
count     count of red ?          zero ... three, boxes included
exist     exist red circle ?      yes / no; the colour and the shape both occur
where     where is circle ?       a quadrant of the image
side      side circle star ?      left / right: the circle, seen from the star
height    height circle star ?    above / below: likewise
read      read in red ?           the character in the red box
texture   texture of background ? a texture
========  ======================  ==========================================

Drawing uses integers only and the frozen generator ``RandomState``, so that a seed gives the same pixels on
every machine (edges and glyphs come from Pillow, and are the same for one version of it). A scene takes
about 1 ms, its questions 0.2 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = 160
"""Side of an image in pixels."""
CELL = 16
"""Side in pixels of the square that one visual token of the reference model stands for."""
GRID = SIZE // CELL

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (30, 170, 45),
    "blue": (45, 70, 230),
    "yellow": (240, 225, 40),
    "cyan": (50, 215, 225),
    "magenta": (225, 50, 205),
    "orange": (250, 135, 20),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring")
CHARACTERS = tuple("ACEHJKLPSTUX3479")
TEXTURES = ("plain", "rows", "columns", "checker", "diagonal")
QUADRANTS = ("topleft", "topright", "bottomleft", "bottomright")
NUMBERS = ("zero", "one", "two", "three")
TASKS = ("color", "shape", "count", "exist", "where", "side", "height", "read", "texture")
RELATIONS = ("yes", "no", "left", "right", "above", "below")
ANSWERS = (*COLORS, *SHAPES, *CHARACTERS, *TEXTURES, *QUADRANTS, *NUMBERS, *RELATIONS)
WORDS = tuple(dict.fromkeys((*TASKS, "of", "is", "in", "background", "?", *ANSWERS)))
"""The closed vocabulary of questions and answers."""

SPLITS = {"train": (0, 1 << 30), "validation": (1 << 30, 1 << 20), "test": ((1 << 30) + (1 << 20), 1 << 20)}
"""First scene seed and number of scene seeds of each split; the ranges do not overlap."""

_SHAPE_SIZES = (20, 23, 26, 29)
_BOX_SIZES = (22, 25, 28)
_TURNS = (-10, 0, 10)
_MARGIN = 2
_SUPERSAMPLING = 8
_INK = 15


@dataclass(frozen=True)
class Object:
    """One thing in a scene.

    Attributes
    ----------
    kind : str
        A word of `SHAPES`, or ``"box"``.
    color : str
        A word of `COLORS`.
    letter : str or None
        The character in a box; ``None`` for a shape.
    box : (int, int, int, int)
        Left, top, right, bottom in pixels, right and bottom exclusive.
    """

    kind: str
    color: str
    letter: str | None
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        """Horizontal and vertical centre in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and what is in it.

    Attributes
    ----------
    image : uint8 array (160, 160, 3)
        RGB pixels.
    objects : tuple of Object
    texture : str
        A word of `TEXTURES`.
    owner : int8 array (10, 10)
        For each 16 x 16 px cell, the index of the object that covers most of it, or -1 for background.
    """

    image: NDArray[np.uint8]
    objects: tuple[Object, ...]
    texture: str
    owner: NDArray[np.int8]


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes
    ----------
    task : str
        A word of `TASKS`.
    text : str
        Four words of `WORDS`, separated by blanks.
    answer : str
        One word of `ANSWERS`.
    about : tuple of int
        Indices of the objects the answer depends on, in the order they are named; empty when the answer is
        about the background or about something absent.
    """

    task: str
    text: str
    answer: str
    about: tuple[int, ...]


def split_seed(split: str, index: int) -> int:
    """Seed of scene number `index` of a split; scenes of different splits never share a seed.

    >>> split_seed("train", 3), split_seed("test", 0) > split_seed("train", 10**9)
    (3, True)
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    first, count = SPLITS[split]
    if not 0 <= index < count:
        raise ValueError(f"scene {index} is outside the {split} split, which has {count} scenes")
    return first + index


def make_scene(seed: int, *, simple: bool = False) -> Scene:
    """Draw the scene of a seed.

    Parameters
    ----------
    seed : int
        See `split_seed`.
    simple : bool
        One to three shapes and two boxes instead of three to six and three; used early in training.
    """
    rng = np.random.RandomState(seed)
    shapes = rng.randint(1, 4) if simple else rng.randint(3, 7)
    boxes = 2 if simple else 3
    texture = TEXTURES[rng.randint(len(TEXTURES))]
    canvas = _background(rng, texture)
    colors = list(COLORS)
    box_colors = rng.permutation(len(colors))[:boxes]
    palette = rng.permutation(len(colors))[: rng.randint(3, 6)]
    used = np.bincount(box_colors, minlength=len(colors))

    objects: list[Object] = []
    owner = np.full((GRID, GRID), -1, np.int8)
    covered = np.full((GRID, GRID), CELL * CELL // 10, np.int64)
    for number in range(boxes + shapes):
        boxed = number < boxes
        side = int(rng.choice(_BOX_SIZES if boxed else _SHAPE_SIZES))
        place = _free_place(rng, side, objects)
        color = int(box_colors[number] if boxed else rng.choice(palette))
        if not boxed:
            used[color] += 1
        if place is None or used[color] >= len(NUMBERS):
            continue
        left, top = place
        patch = canvas[top : top + side, left : left + side]
        tint = np.clip(np.array(COLORS[colors[color]]) + rng.randint(-18, 19, 3), 0, 255)
        letter = None
        if boxed:
            kind, letter = "box", CHARACTERS[rng.randint(len(CHARACTERS))]
            mask = np.full((side, side), 255, np.int64)
            patch[:] = tint
            _blend(patch, _glyph_mask(letter, side, int(rng.randint(len(_GLYPH_STYLES)))), np.full(3, _INK))
        else:
            kind = SHAPES[rng.randint(len(SHAPES))]
            mask = _shape_mask(kind, side, int(rng.choice(_TURNS)))
            _blend(patch, mask, tint)
        _claim(owner, covered, len(objects), mask, left, top)
        objects.append(Object(kind, colors[color], letter, (left, top, left + side, top + side)))
    row, column = rng.randint(0, _NOISE.shape[0] - SIZE, 2)
    canvas += _NOISE[row : row + SIZE, column : column + SIZE]
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), tuple(objects), texture, owner)


def ask(scene: Scene, seed: int) -> list[Question]:
    """Questions about a scene, in random order: at most 24, as many per task as the scene allows.

    Parameters
    ----------
    scene : Scene
    seed : int
        Chooses among the possible questions; the scene's own seed will do.
    """
    rng = np.random.RandomState(seed ^ 0x5EED)
    things = scene.objects
    shapes = [i for i, thing in enumerate(things) if thing.kind != "box"]
    by_kind = {kind: [i for i in shapes if things[i].kind == kind] for kind in SHAPES}
    by_color = {color: [i for i in shapes if things[i].color == color] for color in COLORS}
    lone = [found[0] for found in by_kind.values() if len(found) == 1]

    asked: dict[str, list[Question]] = {task: [] for task in TASKS}

    def add(task: str, text: str, answer: str, *about: int) -> None:
        asked[task].append(Question(task, f"{task} {text} ?", answer, about))

    add("texture", "of background", scene.texture)
    for i, thing in enumerate(things):
        if thing.letter is not None:
            add("read", f"in {thing.color}", thing.letter, i)
    for i in lone:
        add("color", f"of {things[i].kind}", things[i].color, i)
        x, y = things[i].center
        if abs(x - SIZE / 2) > 6 and abs(y - SIZE / 2) > 6:
            add("where", f"is {things[i].kind}", QUADRANTS[2 * (y > SIZE / 2) + (x > SIZE / 2)], i)
        for j in lone:
            other_x, other_y = things[j].center
            if abs(x - other_x) >= CELL:
                add("side", f"{things[i].kind} {things[j].kind}", "left" if x < other_x else "right", i, j)
            if abs(y - other_y) >= CELL:
                add("height", f"{things[i].kind} {things[j].kind}", "above" if y < other_y else "below", i, j)
    for color, found in by_color.items():
        if len(found) == 1:
            add("shape", f"of {color}", things[found[0]].kind, found[0])
        for kind, same in by_kind.items():
            if found and same:
                both = [i for i in found if i in same]
                add("exist", f"{color} {kind}", "yes" if both else "no", *both)
        counted = [i for i, thing in enumerate(things) if thing.color == color]
        add("count", f"of {color}", NUMBERS[len(counted)], *counted)

    chosen: list[Question] = []
    for task, questions in asked.items():
        order = [questions[i] for i in rng.permutation(len(questions))]
        limit = _LIMITS[task]
        if task in ("count", "exist"):
            order = _balanced(order, limit)
        chosen += order[:limit]
    return [chosen[i] for i in rng.permutation(len(chosen))]


_LIMITS = dict(color=3, shape=3, count=3, exist=4, where=2, side=2, height=2, read=3, texture=1)
MAX_QUESTIONS = sum(_LIMITS.values()) + 1
"""No scene has more questions than this."""


def _balanced(questions: list[Question], limit: int) -> list[Question]:
    """Take questions in turn from each answer, so that the common answer does not win."""
    by_answer: dict[str, list[Question]] = {}
    for question in questions:
        by_answer.setdefault(question.answer, []).append(question)
    if len(by_answer) == 1:
        return questions[:1]
    rounds = range(max(map(len, by_answer.values())))
    return [found[r] for r in rounds for found in by_answer.values() if r < len(found)][:limit]


def _background(rng: np.random.RandomState, texture: str) -> NDArray[np.int64]:
    """Base colour plus or minus a two-level pattern, (160, 160, 3)."""
    half = rng.randint(5, 9)  # half a period of the pattern in pixels
    rows = (np.arange(SIZE) + rng.randint(2 * half)) // half
    columns = (np.arange(SIZE) + rng.randint(2 * half)) // half
    diagonal = (np.add.outer(np.arange(SIZE), np.arange(SIZE)) + rng.randint(4 * half)) * 2 // (3 * half)
    stripes = {
        "plain": None,
        "rows": rows[:, None],
        "columns": columns[None, :],
        "checker": np.add.outer(rows, columns),
        "diagonal": diagonal,
    }[texture]
    level = np.zeros((1, 1), np.int64) if stripes is None else stripes % 2 * 36 - 18
    base = rng.randint(70, 121) + rng.randint(-15, 16, 3)
    return np.broadcast_to(level, (SIZE, SIZE))[..., None] + base


def _free_place(rng: np.random.RandomState, side: int, objects: list[Object]) -> tuple[int, int] | None:
    """A left, top corner where a square does not touch what is there already, or None after 60 tries."""
    for left, top in rng.randint(_MARGIN, SIZE - side - _MARGIN, (60, 2)).tolist():
        right, bottom = left + side, top + side
        if all(left > o.box[2] or top > o.box[3] or right < o.box[0] or bottom < o.box[1] for o in objects):
            return left, top
    return None


def _blend(patch: NDArray[np.int64], mask: NDArray[np.int64], color: NDArray[np.int64]) -> None:
    """Paint `color` on `patch` (h, w, 3) in place where `mask` (h, w), 0 to 255, says."""
    patch += (mask[..., None] * (color - patch) + 127) // 255


def _claim(
    owner: NDArray[np.int8],
    covered: NDArray[np.int64],
    index: int,
    mask: NDArray[np.int64],
    left: int,
    top: int,
) -> None:
    """Give the cells that object `index` covers most to it."""
    rows, columns = np.nonzero(mask > 127)
    cells = np.bincount((rows + top) // CELL * GRID + (columns + left) // CELL, minlength=GRID * GRID)
    area = cells.reshape(GRID, GRID)
    won = area > covered
    owner[won] = index
    covered[won] = area[won]


@cache
def _shape_mask(kind: str, side: int, turn: int) -> NDArray[np.int64]:
    """Coverage (side, side), 0 to 255, of a shape turned by `turn` degrees."""
    big = side * _SUPERSAMPLING
    image = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(image)
    if kind in ("circle", "ring"):
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
        if kind == "ring":
            hole = big * 24 // 100
            draw.ellipse((hole, hole, big - 1 - hole, big - 1 - hole), fill=0)
    else:
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        turned = [(x * cos - y * sin, x * sin + y * cos) for x, y in _OUTLINES[kind]]
        draw.polygon([(round((x + 1) * big / 2), round((y + 1) * big / 2)) for x, y in turned], fill=255)
    return np.asarray(image.reduce(_SUPERSAMPLING)).astype(np.int64)


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, -0.9), (0.9, 0.8), (-0.9, 0.8)],
    "diamond": [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)],
    "cross": [
        *[(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3)],
        *[(0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)],
    ],
    "star": [
        (radius * math.sin(i * math.pi / 5), -radius * math.cos(i * math.pi / 5))
        for i, radius in enumerate([1.0, 0.42] * 5)
    ],
}

_GLYPH_STYLES = ((0.03, 0.0), (0.06, 0.0), (0.045, 0.2))
"""Stroke width as a share of the box side, and slant, of the three ways to write a character."""


@cache
def _glyph_mask(letter: str, side: int, style: int) -> NDArray[np.int64]:
    """Coverage (side, side), 0 to 255, of a character drawn with the font that comes with Pillow."""
    stroke, slant = _GLYPH_STYLES[style]
    big = side * _SUPERSAMPLING
    image = Image.new("L", (big, big), 0)
    font = ImageFont.load_default(size=round(big * 0.84))
    left, top, right, bottom = ImageDraw.Draw(image).textbbox((0, 0), letter, font=font)
    corner = ((big - left - right) / 2, (big - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, letter, font=font, fill=255, stroke_width=round(big * stroke))
    if slant:
        image = image.transform(image.size, Image.Transform.AFFINE, (1, slant, -slant * big / 2, 0, 1, 0))
    solid = image.point([0] * 128 + [255] * 128)  # hard edges: small differences between rasterisers vanish
    return np.asarray(solid.reduce(_SUPERSAMPLING)).astype(np.int64)


def _noise() -> NDArray[np.int64]:
    """Near-normal noise (640, 640, 3) that scenes cut their piece of: grey (sd 9.5) plus colour (sd 6.5)."""
    rng = np.random.RandomState(20)
    grey = rng.randint(-9, 10, (3, 640, 640, 1)).sum(0)
    color = rng.randint(-6, 7, (3, 640, 640, 3)).sum(0)
    field: NDArray[np.int64] = grey + color
    return field


_NOISE = _noise()
