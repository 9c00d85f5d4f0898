"""Drawing: backgrounds, shapes, boxes, text, and a record of which object covers which cell.

Integers only and the frozen generator ``RandomState``, so that a seed gives the same pixels on every machine (the edges
of shapes and the scaling of glyphs come from Pillow, and are the same for one version of it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .assets import PHOTO_SIDE, assets
from .vocabulary import CELL, COLORS, SIZE

Ints = NDArray[np.int64]

KINDS = (*("circle", "square", "triangle", "diamond", "cross", "star", "ring"), "box", "digit", "plate", "bar", "text")
"""Shapes; a printed character, a handwritten digit and a word in a coloured box; a bar of a chart; ink on paper."""
INK = 15
_MARGIN = 2
_SUPERSAMPLING = 8
_HALF_PERIODS = {"train": (5, 7, 8), "validation": (9,), "test": (6,)}
"""Half a period in pixels of the striped textures, by split."""


@dataclass(frozen=True)
class Object:
    """One thing in a picture.

    Attributes
    ----------
    kind : str
        A word of `KINDS`.
    color : str or None
        A word of `COLORS`; in a table, the colour of the row.
    text : str or None
        What is written there.
    link : str or None
        What this text belongs to: the column of a table's entry, the key of a document's value.
    box : (int, int, int, int)
        Left, top, right, bottom in pixels, right and bottom exclusive.
    """

    kind: str
    color: str | None
    text: str | None
    link: str | None
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        """Horizontal and vertical centre in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True, eq=False)
class Picture:
    """An image and what is in it.

    Attributes
    ----------
    image : uint8 (H, W, 3)
        RGB pixels.
    objects : tuple of Object
    texture : str
        A word of `TEXTURES`.
    coverage : int32 (objects, H // 16, W // 16)
        Pixels of each cell that an object covers.
    """

    image: NDArray[np.uint8]
    objects: tuple[Object, ...]
    texture: str
    coverage: NDArray[np.int32]

    @property
    def owner(self) -> NDArray[np.int64]:
        """For each cell the object that covers most of it, or -1 where none covers a tenth, (H // 16, W // 16)."""
        floor = np.full((1, *self.coverage.shape[1:]), CELL * CELL // 10)
        owner: NDArray[np.int64] = np.concatenate((floor, self.coverage)).argmax(0) - 1
        return owner


@dataclass(eq=False)
class Canvas:
    """A picture in the making.

    Attributes
    ----------
    split : str
        Whose photographs, fonts, digits and textures to use.
    rng : RandomState
    pixels : int64 (H, W, 3)
    texture : str
    objects : list of Object
    masks : list of (left, top, mask)
        Where the ink of each object is, 0 to 255.
    """

    split: str
    rng: np.random.RandomState
    pixels: Ints
    texture: str
    objects: list[Object] = field(default_factory=list)
    masks: list[tuple[int, int, Ints]] = field(default_factory=list)

    def copy(self) -> Canvas:
        """An independent canvas with the same content."""
        return Canvas(self.split, self.rng, self.pixels.copy(), self.texture, [*self.objects], [*self.masks])

    def place(self, width: int, height: int) -> tuple[int, int] | None:
        """A left, top corner where a rectangle does not touch what is there already, or None after 60 tries."""
        bottom, right = self.pixels.shape[:2]
        spans = (right - width - _MARGIN, bottom - height - _MARGIN)
        for left, top in zip(*(self.rng.randint(_MARGIN, span, 60).tolist() for span in spans), strict=True):
            if all(
                left > o.box[2] or top > o.box[3] or left + width < o.box[0] or top + height < o.box[1]
                for o in self.objects
            ):
                return left, top
        return None

    def shape(self, kind: str, color: str, side: int, corner: tuple[int, int]) -> None:
        """A filled shape in a square."""
        mask = shape_mask(kind, side, int(self.rng.choice((-10, 0, 10))))
        self._paint(mask, corner, self._tint(color))
        self._add(Object(kind, color, None, None, _box(corner, mask)), corner, mask)

    def boxed(self, kind: str, color: str, ink: Ints, text: str, corner: tuple[int, int]) -> None:
        """Dark ink (h, w) on a coloured rectangle of that size."""
        solid = np.full(ink.shape, 255)
        self._paint(solid, corner, self._tint(color))
        self._paint(ink, corner, np.full(3, INK))
        self._add(Object(kind, color, text, None, _box(corner, ink)), corner, solid)

    def bar(self, color: str, width: int, height: int, corner: tuple[int, int]) -> None:
        """A filled rectangle without text."""
        solid = np.full((height, width), 255)
        self._paint(solid, corner, self._tint(color))
        self._add(Object("bar", color, None, None, _box(corner, solid)), corner, solid)

    def write(
        self, ink: Ints, text: str, corner: tuple[int, int], color: str | None = None, link: str | None = None
    ) -> None:
        """Dark ink (h, w) on the paper; the whole rectangle belongs to the text."""
        self._paint(ink, corner, np.full(3, INK + 10))
        self._add(Object("text", color, text, link, _box(corner, ink)), corner, np.full(ink.shape, 255))

    def clutter(self, pieces: int) -> None:
        """Small grey strokes that mean nothing; objects are drawn over them."""
        for left, top, width, height, grey in self.rng.randint(
            (2, 2, 2, 2, 40), (150, 150, 9, 9, 190), (pieces, 5)
        ).tolist():
            self.pixels[top : top + height, left : left + width] = grey

    def finish(self) -> Picture:
        """The picture, with noise."""
        height, width = self.pixels.shape[:2]
        row, column = self.rng.randint(0, _NOISE.shape[0] - max(height, width), 2)
        noisy = self.pixels + _NOISE[row : row + height, column : column + width]
        coverage = np.zeros((len(self.objects), height // CELL, width // CELL), np.int32)
        for found, (left, top, mask) in zip(coverage, self.masks, strict=True):
            rows, columns = np.nonzero(mask > 127)
            cells = (rows + top) // CELL * (width // CELL) + (columns + left) // CELL
            found[:] = np.bincount(cells, minlength=found.size).reshape(found.shape)
        return Picture(np.clip(noisy, 0, 255).astype(np.uint8), tuple(self.objects), self.texture, coverage)

    def _tint(self, color: str) -> Ints:
        return np.clip(np.array(COLORS[color]) + self.rng.randint(-18, 19, 3), 0, 255)

    def _paint(self, mask: Ints, corner: tuple[int, int], color: Ints) -> None:
        left, top = corner
        patch = self.pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
        patch += (mask[..., None] * (color - patch) + 127) // 255

    def _add(self, thing: Object, corner: tuple[int, int], mask: Ints) -> None:
        self.objects.append(thing)
        self.masks.append((*corner, mask))


def _box(corner: tuple[int, int], mask: Ints) -> tuple[int, int, int, int]:
    left, top = corner
    return left, top, left + mask.shape[1], top + mask.shape[0]


def textured(split: str, rng: np.random.RandomState, texture: str) -> Canvas:
    """A dark canvas of 160 x 160 px with a two-level pattern or a photograph."""
    if texture == "photo":
        photos = assets(split).photos
        photo = photos[rng.randint(len(photos))]
        row, column = rng.randint(0, PHOTO_SIDE - SIZE, 2)
        cut = photo[row : row + SIZE, column : column + SIZE].astype(np.int64)
        turned = np.rot90(cut, rng.randint(4))[:, :: int(rng.choice((-1, 1)))]
        pixels = rng.randint(75, 111) + (turned - 110) * int(rng.randint(30, 56)) // 100
        return Canvas(split, rng, np.maximum(pixels, 0), texture)
    half = int(rng.choice(_HALF_PERIODS[split]))
    rows = (np.arange(SIZE) + rng.randint(2 * half)) // half
    columns = (np.arange(SIZE) + rng.randint(2 * half)) // half
    diagonal = (np.add.outer(np.arange(SIZE), np.arange(SIZE)) + rng.randint(4 * half)) * 2 // (3 * half)
    stripes = {
        "plain": np.ones((1, 1), np.int64),
        "rows": rows[:, None],
        "columns": columns[None, :],
        "checker": np.add.outer(rows, columns),
        "diagonal": diagonal,
    }[texture]
    level = stripes % 2 * 36 - 18
    base = rng.randint(70, 121) + rng.randint(-15, 16, 3)
    return Canvas(split, rng, np.broadcast_to(level, (SIZE, SIZE))[..., None] + base, texture)


def paper(split: str, rng: np.random.RandomState, side: int) -> Canvas:
    """A light canvas of `side` x `side` px, a little brighter towards one edge."""
    slope = np.arange(side)[:, None, None] * int(rng.randint(0, 21)) // side
    pixels = np.broadcast_to(rng.randint(185, 221) + rng.randint(-10, 11, 3) + slope, (side, side, 3)).copy()
    return Canvas(split, rng, pixels, "plain")


@cache
def text_mask(split: str, font: int, text: str, height: int) -> Ints:
    """Ink (height, width), 0 to 255, of a text in capitals; capitals are seven tenths of the height."""
    strip = np.concatenate([assets(split).fonts[font][letter] for letter in text.upper()], 1)
    width = max(1, strip.shape[1] * height // strip.shape[0])
    return np.asarray(Image.fromarray(strip).resize((width, height), Image.Resampling.BOX)).astype(np.int64)


@cache
def digit_mask(split: str, number: int, side: int) -> Ints:
    """Ink (side, side), 0 to 255, of a handwritten digit, with a margin."""
    inner = side - 4
    image = Image.fromarray(assets(split).digits[number]).resize((inner, inner), Image.Resampling.BILINEAR)
    return np.pad(np.asarray(image).astype(np.int64), 2)


def padded(ink: Ints, height: int, width: int) -> Ints:
    """The ink in the middle of a rectangle at least as large as itself."""
    rows, columns = max(height - ink.shape[0], 0), max(width - ink.shape[1], 0)
    return np.pad(ink, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)))


@cache
def shape_mask(kind: str, side: int, turn: int) -> Ints:
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


def _noise() -> Ints:
    """Near-normal noise (640, 640, 3) that pictures cut their piece of: grey (sd 9.5) plus colour (sd 6.5)."""
    rng = np.random.RandomState(20)
    grey = rng.randint(-9, 10, (3, 640, 640, 1)).sum(0)
    color = rng.randint(-6, 7, (3, 640, 640, 3)).sum(0)
    field: Ints = grey + color
    return field


_NOISE = _noise()
