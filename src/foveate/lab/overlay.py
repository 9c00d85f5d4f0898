"""Pictures of what becomes of the visual tokens: a panel for every step where a method acts, and what the marks mean."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hls_to_rgb
from math import ceil, sqrt

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveate.lab.index import group_sites
from foveate.lab.story import Act, Story
from foveate.lab.story.view import Frame

SIDE = 240  # longest side of a panel in pixels
CAPTION = 36  # two lines
LINE = 18
SWATCH = 14
GAP = 8
ACROSS = 6  # panels in a row
PANELS = 17  # a method may act in every block of a deep tower: at most so many are drawn, and the others are named

_PAPER = (255, 255, 255)
_INK = (20, 20, 20)
_PLAIN = (159, 184, 182)  # what lies below a grid whose picture nobody knows
_BLUE, _ORANGE, _PURPLE = (40, 86, 168), (234, 166, 30), (122, 62, 140)
#: What a cell is, by its letter in a `Frame`.
MEANINGS = {
    "m": "merged: one colour is one token",
    "s": "skips a part of the layer",
    "p": "parked: comes back later",
    "l": "parked, still read",
    "r": "back after parking",
    "d": "dropped",
    "w": "dropped after some layers",
    "h": "hidden from the last word",
    "x": "absent: gone, or part of another token",
}
_WORDS = {
    "reduce": "keeps {after} of {before} {unit}",
    "merge": "merges {before} into {after} {unit}",
    "resize": "shrinks {before} to {after} {unit}",
    "park": "goes on with {after} of {before} {unit}",
    "restore": "goes from {before} back to {after} {unit}",
    "hide": "shows {after} of {before} {unit}",
    "free": "caches {after} of {before} {unit}",
    "skip": "sends {after} of {before} {unit} through a part",
}


def strip(image: Image.Image, story: Story, title: str = "image", tiles: Sequence[Image.Image] = ()) -> Image.Image:
    """The image, then a panel for each step where a method acts, and which of its patches are what there.

    Args:
        image: what the model saw.
        story: of the call (`foveate.lab.story.tell`).
        title: caption of the first panel.
        tiles: what each grid of tokens lies over, where the model has cut the image into several.
    """
    acting = [number for number, acts in enumerate(story.acts) if acts]
    drawn = _some(acting)
    panels = [(_scaled(image), (title, ""))]
    for number in drawn:
        frames = [story.frames[at] for at in story.shown[number]]
        panels.append((_panel(image, frames, tiles), (story.steps[number].name, _says(story.acts[number]))))
    letters = "".join(story.frames[at].states for number in drawn for at in story.shown[number])
    notes = [letter for letter in MEANINGS if letter in letters]
    left_out = group_sites(story.steps[number].name for number in acting if number not in drawn)
    return _sheet(panels, notes, f"Not drawn: {left_out}." if left_out else "")


def stack(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips under each other."""
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), _PAPER)
    top = 0
    for one in strips:
        sheet.paste(one, (0, top))
        top += one.height
    return sheet


def _some(steps: Sequence[int]) -> list[int]:
    """Evenly spaced ones, the last one included."""
    if len(steps) <= PANELS:
        return list(steps)
    return [steps[(i + 1) * len(steps) // PANELS - 1] for i in range(PANELS)]


def _says(acts: Sequence[Act]) -> str:
    return "; ".join(
        f"{act.method}: {act.says}"
        if act.says
        else f"{act.method} {_WORDS[act.action].format(before=act.before, after=act.after, unit=_unit(act))}"
        for act in acts
    )


def _unit(act: Act) -> str:
    return "patches" if act.patches else "tokens"


def _scaled(image: Image.Image) -> Image.Image:
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _panel(image: Image.Image, frames: Sequence[Frame], tiles: Sequence[Image.Image]) -> Image.Image:
    """One grid over the image, or several in rows, each over its tile where that is known."""
    if len(frames) == 1:
        return _painted(_seen(image, frames[0]), frames[0])
    across = ceil(sqrt(len(frames)))
    sheet = Image.new("RGB", (SIDE, SIDE * ceil(len(frames) / across) // across), _PAPER)
    side = SIDE // across - 2
    for number, frame in enumerate(frames):
        plain = Image.new("RGB", (frame.width, frame.height), _PLAIN)
        below = tiles[number] if len(tiles) == len(frames) else plain
        cell = _painted(_seen(below, frame), frame).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(cell, (number % across * (side + 2), number // across * (side + 2)))
    return sheet


def _painted(image: Image.Image, frame: Frame) -> Image.Image:
    pen = ImageDraw.Draw(image, "RGBA")
    for i, state in enumerate(frame.states):
        y, x = divmod(i, frame.width)
        box = (*_corner(image, frame, y, x), *_corner(image, frame, y + 1, x + 1))
        _mark(image, pen, box, state, 0 if frame.owners is None else frame.owners[i])
    if frame.owners is not None:
        _groups(image, pen, frame)
    return image


def _mark(image: Image.Image, pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], state: str, owner: int) -> None:
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    if state in "dwx":
        image.paste(image.crop(box).convert("L").point([value // 4 for value in range(256)]).convert("RGB"), box)
    elif state == "m":
        pen.rectangle((left, top, right, bottom), (*_hue(owner), 130))
    elif state in "pls":
        pen.rectangle((left, top, right, bottom), (255, 255, 255, 150 if state == "p" else 80))
        pen.line((left, bottom, right, top), (*_BLUE, 255), 1)
    elif state == "r":
        side = max(2, (right - left) // 3)
        pen.polygon(((left, top), (left + side, top), (left, top + side)), (*_ORANGE, 255))
    elif state == "h":
        pen.rectangle((left, top, right, bottom), (*_PURPLE, 140))
    if state in "wl":  # beside their siblings `d` and `p`
        pen.line((left, top, right, bottom), (150, 150, 150, 255) if state == "w" else (*_BLUE, 255), 1)


def _groups(image: Image.Image, pen: ImageDraw.ImageDraw, frame: Frame) -> None:
    """White borders where a merged token ends, and a dot where it stands."""
    owners = np.array(frame.owners).reshape(frame.height, frame.width)
    merged = (np.array(list(frame.states)) == "m").reshape(owners.shape)
    for y, x in zip(*np.nonzero((owners[:, 1:] != owners[:, :-1]) & (merged[:, 1:] | merged[:, :-1]))):
        pen.line((*_corner(image, frame, y, x + 1), *_corner(image, frame, y + 1, x + 1)), "white", 2)
    for y, x in zip(*np.nonzero((owners[1:] != owners[:-1]) & (merged[1:] | merged[:-1]))):
        pen.line((*_corner(image, frame, y + 1, x), *_corner(image, frame, y + 1, x + 1)), "white", 2)
    for at_y, at_x in frame.marks or ():
        x, y = image.width * at_x / frame.width, image.height * at_y / frame.height
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), "white", _INK)


def _corner(image: Image.Image, frame: Frame, y: float, x: float) -> tuple[int, int]:
    return round(image.width * x / frame.width), round(image.height * y / frame.height)


def _hue(owner: int) -> tuple[int, int, int]:
    """Neighbours in number are far apart in colour; as on the page of ``foveate report``."""
    red, green, blue = hls_to_rgb((owner * 137.508 + 40) % 360 / 360, 0.55, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def _seen(image: Image.Image, frame: Frame) -> Image.Image:
    """What the model saw: where nothing was dropped at the pixels but the image made smaller, its pixels are larger."""
    big = _scaled(image)
    if frame.resized is None:
        return big
    down, across = frame.resized
    small = (max(1, round(image.width * across)), max(1, round(image.height * down)))
    return image.convert("RGB").resize(small, Image.Resampling.BICUBIC).resize(big.size, Image.Resampling.NEAREST)


def _sheet(panels: Sequence[tuple[Image.Image, tuple[str, str]]], letters: Sequence[str], note: str) -> Image.Image:
    """Panels in rows, and below them what the marks mean and the note."""
    font = ImageFont.load_default(size=12)
    # A caption may be wider than a narrow image.
    wide = max(max(panel.width, *(ceil(font.getlength(line)) for line in lines)) for panel, lines in panels) + GAP
    high = max(panel.height for panel, _ in panels) + CAPTION + GAP
    across = min(len(panels), ACROSS)
    bottom = high * ceil(len(panels) / across)
    below = _below(letters, note, max(wide * across, SIDE))
    sheet = Image.new("RGB", (max(wide * across, below.width), bottom + below.height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (panel, lines) in enumerate(panels):
        left, top = wide * (number % across), high * (number // across)
        sheet.paste(panel, (left, top + CAPTION))
        for row, line in enumerate(lines):
            pen.text((left, top + 2 + 15 * row), line, font=font, fill=_INK)
    sheet.paste(below, (0, bottom))
    return sheet


def _below(letters: Sequence[str], note: str, width: int) -> Image.Image:
    """The marks, each with its meaning, and the note, in lines no wider than ``width`` where a word allows."""
    font = ImageFont.load_default(size=12)
    parts: list[tuple[str, str]] = [(letter, MEANINGS[letter]) for letter in letters]
    parts += [("", word) for word in note.split()]
    places: list[tuple[int, int, str, str]] = []
    left = top = 0
    for letter, words in parts:
        room = ceil(font.getlength(words)) + (3 * GAP + SWATCH if letter else GAP // 2)
        if left and (left + room > width or (not letter and places[-1][2])):  # the note has a line of its own
            left, top = 0, top + LINE
        places.append((left, top, letter, words))
        left += room
    sheet = Image.new("RGB", (width, top + LINE + GAP if parts else 0), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for left, top, letter, words in places:
        if letter:
            owned = ((0,), ((0.5, 0.5),)) if letter == "m" else (None, None)
            swatch = _painted(Image.new("RGB", (SWATCH, SWATCH), _PLAIN), Frame(1, 1, letter, *owned))
            sheet.paste(swatch, (left, top + 1))
        pen.text((left + (SWATCH + GAP // 2 if letter else 0), top), words, font=font, fill=_INK)
    return sheet
