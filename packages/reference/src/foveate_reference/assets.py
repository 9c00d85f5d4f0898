"""Photographs, handwritten digits and glyphs for the benchmark, by split.

They are cut once from what scikit-image, scikit-learn and matplotlib ship and stored in ``assets.npz``, so that every
machine draws the same pixels and needs none of the three::

    pip install scikit-image scikit-learn matplotlib
    python -m foveate_reference.assets

No photograph, font or writer's block of digits is in two splits. Sources and licences: ``README.md`` beside this file.
"""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .vocabulary import DIGITS, LETTERS, LEXICON

PATH = Path(__file__).parent / "assets.npz"
PHOTO_SIDE = 208
GLYPH_HEIGHT = 64
GLYPHS = tuple(dict.fromkeys((*LETTERS, *DIGITS, *(letter for word in LEXICON for letter in word.upper()))))

_PHOTOS = {
    "train": (
        *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "gravel.png", "ihc.png", "motorcycle_left.png"),
        *("retina.jpg", "rocket.jpg", "flower.jpg"),
    ),
    "validation": ("coins.png", "moon.png"),
    "test": ("china.jpg", "coffee.png", "grass.png", "hubble_deep_field.jpg"),
}
_FONTS = {
    "train": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif-Bold"),
        *("DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "cmb10", "cmtt10"),
    ),
    "validation": ("DejaVuSansMono-Bold", "STIXGeneralItalic"),
    "test": ("DejaVuSerif", "DejaVuSans-BoldOblique", "cmss10"),
}
_DIGIT_ROWS = {"train": (0, 1200), "validation": (1200, 1400), "test": (1400, 1797)}
"""Rows of the digits file; it goes writer by writer."""


@dataclass(frozen=True, eq=False)
class Assets:
    """What one split draws with.

    Attributes
    ----------
    photos : uint8 (P, 208, 208, 3)
        Square cuts of photographs, half their saturation taken away.
    digits : uint8 (D, 8, 8)
        Handwritten digits, ink 0 to 255.
    digit_labels : uint8 (D,)
    fonts : tuple of dict from character to uint8 (64, width)
        Ink 0 or 255 of each character on a common base line.
    """

    photos: NDArray[np.uint8]
    digits: NDArray[np.uint8]
    digit_labels: NDArray[np.uint8]
    fonts: tuple[dict[str, NDArray[np.uint8]], ...]


@cache
def assets(split: str) -> Assets:
    """Photographs, digits and fonts of a split."""
    with np.load(PATH, allow_pickle=False) as file:
        fonts = []
        for name in _FONTS[split]:
            strip = np.unpackbits(file[f"font/{name}"], axis=1) * np.uint8(255)
            ends = np.cumsum(file[f"width/{name}"]).tolist()
            fonts.append({glyph: strip[:, s:e] for glyph, s, e in zip(GLYPHS, [0, *ends], ends, strict=False)})
        photos = np.stack([file[f"photo/{name}"] * np.uint8(8) for name in _PHOTOS[split]])
        first, last = _DIGIT_ROWS[split]
        digits = np.minimum(file["digits"][first:last] * np.uint16(16), 255).astype(np.uint8)
        return Assets(photos, digits, file["digit_labels"][first:last], tuple(fonts))


def build(path: Path = PATH) -> None:
    """Write the file anew from the three libraries."""
    found: dict[str, NDArray[np.generic]] = {}
    for name in sum(_PHOTOS.values(), ()):
        found[f"photo/{name}"] = _photo(name)
    with gzip.open(_folder("sklearn") / "datasets/data/digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    found["digits"], found["digit_labels"] = table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    for name in sum(_FONTS.values(), ()):
        strips = _glyphs(_folder("matplotlib") / f"mpl-data/fonts/ttf/{name}.ttf")
        found[f"font/{name}"] = np.packbits(np.concatenate(strips, 1) > 127, axis=1)
        found[f"width/{name}"] = np.array([strip.shape[1] for strip in strips], np.uint8)
    np.savez_compressed(path, allow_pickle=False, **found)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is needed to build the assets; they are in the package already")
    return Path(spec.origin).parent


def _photo(name: str) -> NDArray[np.uint8]:
    """The middle square of a photograph in 32 levels, (208, 208, 3)."""
    folder = (
        _folder("sklearn") / "datasets/images" if name in ("china.jpg", "flower.jpg") else _folder("skimage") / "data"
    )
    image = Image.open(folder / name).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(square).astype(np.int64)
    muted: NDArray[np.int64] = (pixels + pixels.mean(-1, keepdims=True).astype(np.int64)) // 2
    return (muted // 8).astype(np.uint8)


def _glyphs(path: Path) -> list[NDArray[np.uint8]]:
    """The characters of a font, each (64, width), cut at the left and right edge of its ink."""
    font = ImageFont.truetype(str(path), 60)
    strips = []
    for glyph in GLYPHS:
        image = Image.new("L", (160, GLYPH_HEIGHT))
        ImageDraw.Draw(image).text((40, 54), glyph, font=font, fill=255, anchor="ls")
        ink = np.asarray(image)
        columns = np.nonzero(ink.max(0) > 127)[0]
        strips.append(ink[:, columns[0] - 3 : columns[-1] + 4])
    return strips


if __name__ == "__main__":
    build()
