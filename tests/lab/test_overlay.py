"""The pictures of ``foveate run``: every step where a method acts, and a mark for each thing that becomes of a token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
import foveate_reference as reference
from foveate.lab import overlay
from foveate.lab.story import Act, Step, Story, tell
from foveate.lab.story.view import Frame

PLAIN = (200, 100, 50)
IMAGE = Image.new("RGB", (240, 180), PLAIN)  # a patch is 60 x 60


def story(*frames: Frame, quiet: int = 0) -> Story:
    """A step for each frame, at all of which a method acts; then some where none does."""
    n = len(frames) + quiet
    steps = tuple(Step(f"Vision block {i}", "tower") for i in range(n))
    acts = tuple((Act("any", "reduce", 12, 5, False),) if i < len(frames) else () for i in range(n))
    shown = tuple((min(i, len(frames) - 1),) for i in range(n))
    return Story(steps, frames, shown, (12.0,) * n, (12,) * n, acts, (None,) * n, (None,) * n, 1)


def panel(picture: Image.Image, number: int) -> np.ndarray:
    """Of a strip of `IMAGE`: the pixels of a panel, by patch."""
    left = number * (overlay.SIDE + overlay.GAP)
    pixels = np.asarray(picture)[overlay.CAPTION : overlay.CAPTION + 180, left : left + 240]
    return pixels.reshape(3, 60, 4, 60, 3)


def test_dropped_patches_go_dark() -> None:
    picture = overlay.strip(IMAGE, story(Frame(3, 4, "addddadddadd")))
    assert (panel(picture, 0) == PLAIN).all()
    cut = panel(picture, 1)
    assert (cut == PLAIN).all((1, 3, 4)).flatten().nonzero()[0].tolist() == [0, 5, 9]
    assert (cut[0, :, 1] < 60).all()


def test_merged_patches_are_not_dropped_ones() -> None:
    merged = Frame(3, 4, "mmaaaaaaaadd", (0, 0, *range(2, 10), -1, -1), ((0.5, 1.0),))
    patches = panel(overlay.strip(IMAGE, story(merged)), 1)
    first, second, alive, dropped = (
        patches[0, 10:25, 0, 10:40],
        patches[0, 10:25, 1, 20:50],
        patches[1, 10:50, 1, 10:50],
        patches[2, :, 3],
    )
    assert (first[0, 0] == second[0, 0]).all(), "one token, one colour"
    assert first.mean() > 2 * dropped.mean()
    assert (alive == PLAIN).all()
    assert (first[0, 0] != PLAIN).any()


@pytest.mark.parametrize("letter", overlay.MEANINGS)
def test_every_mark_is_in_the_legend(letter: str) -> None:
    owned = ((0,) * 12, ((1.5, 2.0),)) if letter == "m" else (None, None)
    marked, plain = (
        overlay.strip(IMAGE, story(Frame(3, 4, letters * 12, *marks)))
        for letters, marks in ((letter, owned), ("a", (None, None)))
    )
    assert (panel(marked, 1) != PLAIN).any()
    assert marked.height > plain.height


def test_smaller_pixels_are_shown_as_such() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    picture = overlay.strip(Image.fromarray(noise), story(Frame(3, 4, "a" * 12, resized=(0.5, 0.5))))
    assert len(np.unique(panel(picture, 1).reshape(-1, 3), axis=0)) <= 80 * 80


def test_every_step_is_drawn_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a deep tower not all blocks have a panel; which ones have none is written below."""
    frames = [Frame(3, 4, "a" * i + "d" * (12 - i)) for i in range(12, 2, -1)]
    few = overlay.strip(IMAGE, story(*frames, quiet=3))
    rows = -(-(len(frames) + 1) // overlay.ACROSS)
    assert few.height >= rows * (180 + overlay.CAPTION)
    notes: list[str] = []
    below = overlay._below

    def noted(letters: list[str], note: str, width: int) -> Image.Image:
        notes.append(note)
        return below(letters, note, width)

    monkeypatch.setattr(overlay, "_below", noted)
    overlay.strip(IMAGE, story(*frames))
    overlay.strip(IMAGE, story(*frames, *frames[:-1]))
    assert notes == ["", "Not drawn: Vision block 8, 17."]


def test_several_grids_are_one_panel() -> None:
    tiles = [Image.new("RGB", (50, 50), colour) for colour in ("red", "green", "blue", "white")]
    one = story(*[Frame(2, 2, "aaaa")] * 4)
    cut = overlay.strip(IMAGE, replace(one, shown=((0, 1, 2, 3),) * 4), tiles=tiles)
    pixels = np.asarray(cut)[overlay.CAPTION :, overlay.SIDE + overlay.GAP :]
    assert {(255, 0, 0), (0, 0, 255)} <= set(map(tuple, pixels[::7, ::7].reshape(-1, 3).tolist()))


def test_all_visits_of_a_sum_are_there() -> None:
    """ToMe in four blocks, and FastV."""
    model, processor = reference.load()
    sample = reference.samples("test", tasks=["color"], per_task=1)[0]
    inputs = processor.apply_chat_template(
        sample.messages[:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with foveate.compress(model, foveate.ToMe() + foveate.FastV(layer=4)) as handle, handle.trace() as trace:
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=1, do_sample=False)  # type: ignore[arg-type]
        told = tell(trace(), handle.report())
    assert sum(map(bool, told.acts)) == 5
    strip = overlay.strip(IMAGE, told)
    assert strip.width >= 6 * overlay.SIDE, "the picture and five panels"
    assert overlay.stack([strip, strip]).size == (strip.width, 2 * strip.height)
