"""Pictures of what survives: dropped patches go dark, one panel per site."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveate.cost import Visit

SIDE = 240  # longest side of a panel in pixels
CAPTION = 20
GAP = 6
PANELS = 4  # a method may visit a site in every block: show so many, evenly spaced, the last one included
_PAPER = (255, 255, 255)
_INK = (20, 20, 20)


def strip(image: Image.Image, visits: Sequence[Visit], span: int, title: str = "image") -> Image.Image:
    """The image, then a panel for each visited site that shows which of its patches survive there.

    Args:
        image: what the model saw.
        visits: `foveate.Report.visits` of the call.
        span: which image of the call this is.
        title: caption of the first panel.
    """
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    big = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    panels = [(big, title)]
    for visit in _some([visit for visit in visits if visit.shapes]):
        caption = f"{visit.method}, {visit.site}: {visit.after[span]} of {visit.before[span]}"
        if visit.says:
            caption += f", {visit.says}"
        panels.append(
            (_pixels(image, size, visit, span) if visit.site == "pixels" else _patches(big, visit, span), caption)
        )
    return _row(panels)


def stack(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips under each other."""
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), _PAPER)
    top = 0
    for one in strips:
        sheet.paste(one, (0, top))
        top += one.height
    return sheet


def _some(visits: Sequence[Visit]) -> list[Visit]:
    if len(visits) <= PANELS:
        return list(visits)
    return [visits[(i + 1) * len(visits) // PANELS - 1] for i in range(PANELS)]


def _patches(image: Image.Image, visit: Visit, span: int) -> Image.Image:
    height, width = visit.shapes[span]
    alive = np.zeros(height * width, dtype=np.uint8)
    alive[list(visit.kept[span])] = 255
    mask = Image.fromarray(alive.reshape(height, width)).resize(image.size, Image.Resampling.NEAREST)
    dark = image.convert("L").point([value // 3 for value in range(256)]).convert("RGB")
    return Image.composite(image, dark, mask)


def _pixels(image: Image.Image, size: tuple[int, int], visit: Visit, span: int) -> Image.Image:
    """Nothing is dropped at the pixels: the model sees a smaller image, and the survivors tell its grid."""
    height, width = visit.shapes[span]
    kept = np.asarray(visit.kept[span])
    rows, columns = len(np.unique(kept // width)), len(np.unique(kept % width))
    small = (max(1, round(image.width * columns / width)), max(1, round(image.height * rows / height)))
    return image.convert("RGB").resize(small, Image.Resampling.BICUBIC).resize(size, Image.Resampling.NEAREST)


def _row(panels: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    font = ImageFont.load_default(size=12)
    # A caption may be wider than a narrow image.
    widths = [max(panel.width, round(font.getlength(caption))) + GAP for panel, caption in panels]
    row = Image.new("RGB", (sum(widths), panels[0][0].height + CAPTION + GAP), _PAPER)
    draw = ImageDraw.Draw(row)
    left = 0
    for (panel, caption), width in zip(panels, widths, strict=True):
        row.paste(panel, (left, CAPTION))
        draw.text((left, 3), caption, font=font, fill=_INK)
        left += width
    return row
